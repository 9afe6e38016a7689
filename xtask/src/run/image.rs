//! The image that clusters are given.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::{image, process};

/// An image of the agent, by the name that `deploy` asks for.
pub(super) struct Image {
    /// What is in it.
    pub(super) binary: PathBuf,
    /// The archive.
    pub(super) archive: PathBuf,
}

impl Image {
    /// Where the archive is.
    pub(super) fn path() -> Result<PathBuf> {
        Ok(process::target_directory()?.join("image/netpol-agent.tar"))
    }

    /// Makes it, of a static binary that is given, else of one that is built.
    pub(super) fn make(agent: Option<&Path>) -> Result<Self> {
        let binary = match agent {
            Some(agent) => agent.canonicalize().with_context(|| format!("--agent {}", agent.display()))?,
            None => image::build()?,
        };
        let archive = Self::path()?;
        image::write(&binary, image::REFERENCE, &archive)?;
        Ok(Self { binary, archive })
    }
}
