//! The kernel's side: loads the programs, pins everything, attaches, writes maps, reads counters.
//!
//! [`Dataplane::open`] finds what an earlier agent left under [`pins`] and adopts it: maps are taken as they are, the
//! programs are exchanged in place if they differ. The compiler's plans arrive as `MapOp`s and are written by [`maps`]
//! in their order; interfaces are attached by [`attach`]. All of it runs on one thread (decision D16).

pub mod attach;
pub mod counters;
#[cfg(feature = "datapath-log")]
mod datapath_log;
pub mod flows;
mod loading;
pub mod maps;
pub mod object;
pub mod pins;
pub mod shapes;
pub mod sys;
pub mod words;

use std::path::Path;

use aya::EbpfError;
use aya::programs::ProgramError;
use netpol_common::abi::{Digest, DigestKey, id_kind, names};
use netpol_policy::compile::MapOp;
use sha2::{Digest as _, Sha256};
use tracing::{info, warn};

use crate::config::{Attach, Config, ObjectSource};
use attach::{AttachError, Attacher, Mechanism, Place, Program, Role};
use counters::{DropCounters, EndpointNamespaces};
use maps::{Maps, MapsError};
use pins::{PinError, Pins};
use shapes::Sizes;

/// The datapath could not be set up or used.
#[derive(Debug, thiserror::Error)]
pub enum DataplaneError {
    /// A pin failed.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// The object could not be loaded.
    #[error("loading the object: {0}")]
    Load(#[from] EbpfError),
    /// A program could not be loaded.
    #[error("loading program {name}: {source}")]
    Program {
        /// Its name.
        name: &'static str,
        /// Why; holds the verifier's log.
        source: Box<ProgramError>,
    },
    /// The object holds no such program.
    #[error("the object has no program {0}")]
    NoProgram(&'static str),
    /// A raw call failed.
    #[error(transparent)]
    Syscall(#[from] sys::SyscallError),
    /// A map failed.
    #[error(transparent)]
    Maps(#[from] MapsError),
    /// Attaching failed.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// What the programs log cannot be read.
    #[cfg(feature = "datapath-log")]
    #[error("the programs' log {path}: {message}", path = path.display())]
    Log {
        /// Where the ring is pinned.
        path: std::path::PathBuf,
        /// What is wrong.
        message: String,
    },
    /// The pins are another agent's.
    #[error(
        "what is pinned here was built by an agent with another source of objects or another node name than {node}; \
         start with --takeover to replace its policies, or run `netpol-agent uninstall`"
    )]
    Owner {
        /// The node name that this agent was given.
        node: String,
    },
    /// A pinned map is not what this version expects, although the ABI version is the same.
    #[error("pinned map {map} differs: {difference}; run `netpol-agent uninstall` first")]
    Incompatible {
        /// Name of the map.
        map: &'static str,
        /// What differs.
        difference: String,
    },
}

/// The loaded datapath of this node.
pub struct Dataplane {
    pins: Pins,
    /// Typed maps.
    pub maps: Maps,
    attacher: Attacher,
}

impl Dataplane {
    /// Loads or adopts the datapath.
    pub fn open(config: &Config) -> Result<Self, DataplaneError> {
        let pins = Pins::open(&config.bpf_root)?;
        let present = names::ALL.iter().filter(|name| pins.map(name).exists()).count();
        let adopted = present == names::ALL.len();
        let programs = Program::ALL.map(|program| pins.program(program.name()));
        if !adopted && programs.iter().any(|path| path.exists()) {
            // Programs are pinned after all maps: somebody took maps away. Building new ones would let everything pass.
            let map = names::ALL.into_iter().find(|name| !pins.map(name).exists()).unwrap_or_default();
            return Err(DataplaneError::Incompatible { map, difference: "it is missing".to_owned() });
        }
        if !adopted && present > 0 {
            // A first start that was cut off half way: nothing is attached before all maps are pinned.
            warn!(present, "found part of a map set, building a new one");
            pins.remove_objects()?;
        }
        let made_of = loading::pinned_object(&pins, adopted)?;
        // Verifying takes the kernel its time: what is pinned is not loaded again only to find that it is the same. But
        // whoever reads a log must have loaded the programs that write it.
        let is_loaded = made_of == Some(loading::object_digest()) && programs.iter().all(|path| path.exists());
        if !is_loaded || cfg!(feature = "datapath-log") {
            loading::load(&pins, Sizes::of(config), adopted)?;
        }
        let mechanism = match config.attach {
            Attach::Auto => Mechanism::probe(),
            Attach::Tcx => Mechanism::Tcx,
            Attach::Clsact => Mechanism::Clsact,
        };
        let attacher = Attacher::open(&pins, mechanism)?;
        let mut maps = Maps::open(&pins)?;
        maps.apply(&loading::record_object())?;
        info!(?mechanism, adopted, "datapath ready");
        Ok(Self { pins, maps, attacher })
    }

    /// Attaches what an interface of this role carries.
    pub fn attach(&mut self, ifindex: u32, role: Role) -> Result<(), DataplaneError> {
        Ok(self.attacher.attach(&self.pins, ifindex, role)?)
    }

    /// Takes what belongs to a role off an interface.
    pub fn detach(&self, ifindex: u32, role: Role) -> Result<(), DataplaneError> {
        Ok(self.attacher.detach(&self.pins, ifindex, role)?)
    }

    /// Where our programs are on an interface.
    pub fn place(&self, ifindex: u32, role: Role) -> Result<Place, DataplaneError> {
        Ok(self.attacher.place(ifindex, role)?)
    }

    /// Puts our programs first on an interface.
    pub fn go_first(&mut self, ifindex: u32, role: Role) -> Result<(), DataplaneError> {
        if self.attacher.needs_twins() {
            loading::load_twins(&self.pins)?;
            self.attacher.open_twins(&self.pins)?;
        }
        Ok(self.attacher.go_first(&self.pins, ifindex, role)?)
    }

    /// Elements that a map has room for.
    pub fn map_size(&self, name: &'static str) -> Result<u32, DataplaneError> {
        loading::pinned_size(&self.pins, name)
    }

    /// A reader of the drop counters.
    pub fn drop_counters(&self, namespaces: EndpointNamespaces) -> Result<DropCounters, DataplaneError> {
        Ok(DropCounters::open(&self.pins, namespaces)?)
    }

    /// Refuses to go on with what an agent with another source or node name has built (decision D14), unless told to.
    pub fn check_owner(&mut self, config: &Config) -> Result<(), DataplaneError> {
        const KEY: DigestKey = DigestKey { kind: id_kind::OWNER, id: 0 };
        let digest = owner_digest(config);
        match self.maps.digest(KEY)? {
            Some(known) if known == digest => return Ok(()),
            Some(_) if !config.takeover => {
                return Err(DataplaneError::Owner { node: config.node.to_string() });
            }
            Some(_) => warn!("taking over from an agent with another source or node name"),
            None => {}
        }
        Ok(self.maps.apply(&MapOp::PutDigest(KEY, digest))?)
    }

    /// How programs are attached.
    #[must_use]
    pub const fn mechanism(&self) -> Mechanism {
        self.attacher.mechanism()
    }

    /// Interfaces with a pinned link.
    pub fn linked_interfaces(&self) -> Result<Vec<u32>, DataplaneError> {
        Ok(self.pins.linked_interfaces()?)
    }
}

/// Detaches everything and removes every pin. Works without a loadable object: what an agent of another version left goes
/// the same way.
///
/// `interfaces` are all of this node's: a clsact filter has no pin to find it by.
pub fn uninstall(bpf_root: &Path, interfaces: impl IntoIterator<Item = u32>) -> Result<(), DataplaneError> {
    let pins = Pins::open(bpf_root)?;
    // Programs go one by one: those that are left must not ask for the stamps of those that went. Another version's, or a
    // set that is not whole, is not disarmed: then pods are cut off from each other for a moment.
    if let Ok(mut maps) = Maps::open(&pins)
        && let Err(error) = maps.disarm()
    {
        warn!(%error, "could not disarm");
    }
    for ifindex in interfaces {
        attach::detach_filters(ifindex)?;
    }
    // The kernel detaches a TCX link with its last holder, which is the pin.
    Ok(pins.remove_all()?)
}

fn owner_digest(config: &Config) -> Digest {
    let mut hash = Sha256::new();
    hash.update(config.node.as_str());
    match &config.source {
        // Not the server's address: a control plane may move.
        ObjectSource::ApiServer { .. } => hash.update(b"\0api"),
        ObjectSource::Manifests(directory) => {
            hash.update(b"\0manifests\0");
            hash.update(directory.as_os_str().as_encoded_bytes());
        }
    }
    let mut digest = Digest::default();
    digest.copy_from_slice(&hash.finalize()[..size_of::<Digest>()]);
    digest
}
