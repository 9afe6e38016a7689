//! Empty: it exists so that the agent can depend on this crate, and cargo rebuilds the programs when it changes.
#![no_std]
