//! Whose packet it is: the endpoint behind the interface, and what is in force for it.

use super::Outcome;
use crate::abi::{
    AddressKey, Bucket, EndpointOptions, InterfaceRow, PENDING_ENDPOINT, SET_ALLOW_ALL, SET_PENDING, Settings,
    bucket_index, budget, endpoint_flags, setting_flags,
};
use crate::flow;
use crate::parse::Address;
use crate::tables::Tables;
use crate::verdict::Reason;

/// The endpoint that a packet is judged for.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(super) struct Subject {
    /// Endpoint number; [`PENDING_ENDPOINT`] while the pod is unknown.
    pub(super) endpoint: u32,
    /// The policy set in force; [`SET_PENDING`] while there is none.
    pub(super) set: u32,
    /// Its epoch. 0 while pending, which no live endpoint has: a flow of that time is judged again afterwards.
    pub(super) epoch: u32,
    /// Second of the boot clock until which the reverse orientation is tried too.
    pub(super) reverse_until: u32,
    /// Bits of [`endpoint_flags`].
    pub(super) options: u32,
}

impl Subject {
    /// Before the look-up.
    #[inline(always)]
    pub(super) const fn unknown() -> Self {
        Self {
            endpoint: PENDING_ENDPOINT,
            set: SET_PENDING,
            epoch: 0,
            reverse_until: 0,
            options: endpoint_flags::NO_ADDRESS_CHECK,
        }
    }

    /// Reads the word before anything else that depends on it: class and rule rows only grow before a word that needs
    /// them is stored (decision D10).
    #[inline(always)]
    pub(super) fn find<T: Tables>(tables: &T, ifindex: u32) -> Result<Self, Reason> {
        let Settings { flags, .. } = tables.settings().ok_or(Reason::TableMissing)?;
        let endpoint = match tables.interface(ifindex) {
            Some(InterfaceRow { endpoint, flags: _ }) => endpoint,
            None => PENDING_ENDPOINT,
        };
        let word = tables.endpoint_word(endpoint).ok_or(Reason::TableMissing)?;
        if endpoint == PENDING_ENDPOINT || word.set() == SET_PENDING {
            let open = flags & setting_flags::PENDING_ALLOW != 0;
            let set = if open { SET_ALLOW_ALL } else { SET_PENDING };
            return Ok(Self { endpoint, set, ..Self::unknown() });
        }
        let EndpointOptions { flags, reverse_until } = tables.endpoint_options(endpoint).unwrap_or_default();
        Ok(Self { endpoint, set: word.set(), epoch: word.epoch(), reverse_until, options: flags })
    }

    /// Pending, and nothing opens it: only the own node, its replies and the link's own protocols pass.
    #[inline(always)]
    pub(super) const fn is_closed(&self) -> bool {
        self.set == SET_PENDING
    }

    /// Whether addresses of packets are compared with the endpoint's own.
    #[inline(always)]
    pub(super) const fn checks_addresses(&self) -> bool {
        self.options & endpoint_flags::NO_ADDRESS_CHECK == 0
    }

    /// Whether the endpoint owns an address.
    #[inline(always)]
    pub(super) fn owns<T: Tables>(&self, tables: &T, address: Address) -> bool {
        tables.owns_address(&AddressKey { endpoint: self.endpoint, address: address.bytes() })
    }
}

/// Pays for one more entry from one of an account's budgets. What has no budget gets nothing.
#[inline(never)]
pub(super) fn pay<T: Tables>(tables: &T, account: u32, budget: u32, now_ns: u64) -> Outcome {
    let Settings { flows, opening, fragments, tombstones, .. } = tables.settings().ok_or(Reason::TableMissing)?;
    let Bucket { cost, burst } = match budget {
        budget::FLOWS => flows,
        budget::OPENING => opening,
        budget::TOMBSTONES => tombstones,
        _ => fragments,
    };
    let index = bucket_index(account, budget);
    let bucket = tables.bucket(index).ok_or(Reason::TableMissing)?;
    let after = flow::take_token(bucket, now_ns, cost, burst).ok_or(Reason::FlowRate)?;
    tables.put_bucket(index, after);
    Ok(())
}
