//! Loading the object: maps are taken as they are pinned, programs are pinned over those of an earlier agent.

use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::PathBuf;

use aya::maps::{HashMap, Map, MapData, MapInfo, MapType};
use aya::programs::SchedClassifier;
use aya::{Ebpf, EbpfLoader};
use netpol_common::abi::{Digest, DigestKey, id_kind, names};
use netpol_policy::compile::MapOp;
use sha2::{Digest as _, Sha256};
use tracing::info;

use super::attach::Program;
use super::maps::MapsError;
use super::pins::{PinError, Pins};
use super::shapes::{Shape, Sizes, shapes};
use super::{DataplaneError, object, sys};

/// Where it is recorded which object the pinned programs came from.
const OBJECT: DigestKey = DigestKey { kind: id_kind::OBJECT, id: 0 };

/// The digest of the object in this binary.
pub(super) fn object_digest() -> Digest {
    let mut digest = Digest::default();
    digest.copy_from_slice(&Sha256::digest(object::OBJECT)[..size_of::<Digest>()]);
    digest
}

/// What records that the pinned programs came from it.
pub(super) fn record_object() -> MapOp {
    MapOp::PutDigest(OBJECT, object_digest())
}

/// The object that the pinned programs came from, if there are any.
pub(super) fn pinned_object(pins: &Pins, adopted: bool) -> Result<Option<Digest>, DataplaneError> {
    if !adopted {
        return Ok(None);
    }
    check_compatible(pins, &shapes(Sizes::SMALLEST))?;
    Ok(digests(pins)?.get(&OBJECT, 0).ok())
}

fn digests(pins: &Pins) -> Result<HashMap<MapData, DigestKey, Digest>, MapsError> {
    let error = |source| MapsError::Map { map: names::DIGESTS, source };
    let data = MapData::from_pin(pins.map(names::DIGESTS)).map_err(error)?;
    Map::from_map_data(data).and_then(HashMap::try_from).map_err(error)
}

/// Loads the object onto the pinned maps, or new ones, and pins the programs unless the pinned ones are the same.
pub(super) fn load(pins: &Pins, sizes: Sizes, adopted: bool) -> Result<(), DataplaneError> {
    if adopted {
        // Who is cut off half way leaves programs of two objects. Absent is fine.
        let _absent = digests(pins)?.remove(&OBJECT);
    }
    // An adopted map keeps the size it was made with, whatever the flags say now.
    let size = |shape: &Shape| if adopted { pinned_size(pins, shape.name) } else { Ok(shape.max_entries) };
    let loaded = load_programs(pins, &shapes(sizes), size, adopted, Program::name)?;
    #[cfg(feature = "datapath-log")]
    let loaded = super::datapath_log::forward(loaded, pins)?;
    drop(loaded);
    // Twins of what was there before: a link that bears one gets the new program when it is attached to again.
    for program in Program::ALL {
        Pins::remove(&pins.program(program.twin_name()))?;
    }
    Ok(())
}

/// Loads each program once more: see [`super::attach`] for what the second copy is for.
pub(super) fn load_twins(pins: &Pins) -> Result<(), DataplaneError> {
    let size = |shape: &Shape| pinned_size(pins, shape.name);
    load_programs(pins, &shapes(Sizes::SMALLEST), size, true, Program::twin_name).map(drop)
}

fn load_programs(
    pins: &Pins,
    shapes: &[Shape],
    size: impl Fn(&Shape) -> Result<u32, DataplaneError>,
    adopted: bool,
    pin_name: fn(Program) -> &'static str,
) -> Result<Ebpf, DataplaneError> {
    let mut loader = EbpfLoader::new();
    let paths: Vec<(&str, PathBuf)> = names::ALL.iter().map(|name| (*name, pins.map(name))).collect();
    for (name, path) in &paths {
        let _ = loader.map_pin_path(name, path);
    }
    #[cfg(feature = "datapath-log")]
    let ring = pins.map(super::datapath_log::RING);
    #[cfg(feature = "datapath-log")]
    let _ = loader.map_pin_path(super::datapath_log::RING, &ring);
    for shape in shapes {
        let _ = loader.map_max_entries(shape.name, size(shape)?);
    }
    let mut ebpf = loader.load(object::OBJECT)?;
    for part in Program::ALL {
        let name = part.name();
        let program: &mut SchedClassifier =
            ebpf.program_mut(name)
                .ok_or(DataplaneError::NoProgram(name))?
                .try_into()
                .map_err(|source| DataplaneError::Program { name, source: Box::new(source) })?;
        program.load().map_err(|source| DataplaneError::Program { name, source: Box::new(source) })?;
        let fd = program.fd().map_err(|source| DataplaneError::Program { name, source: Box::new(source) })?;
        pin_program(pins, pin_name(part), fd.as_fd(), adopted)?;
    }
    Ok(ebpf)
}

/// Pins a program over the one of an earlier agent, by a rename, so that there is always one. The same instructions are
/// not pinned again: then the links need no update either.
fn pin_program(pins: &Pins, name: &'static str, fresh: BorrowedFd<'_>, adopted: bool) -> Result<(), DataplaneError> {
    let path = pins.program(name);
    if adopted && let Ok(old) = sys::open_pinned(&path) {
        if sys::program_info(old.as_fd())?.tag == sys::program_info(fresh)?.tag {
            return Ok(());
        }
        info!(program = name, "programs changed since the last agent, exchanging them in place");
    }
    // bpffs renames only within one directory, and a pin under another name is found by nobody.
    let new = pins.program(&format!("{name}_new"));
    Pins::remove(&new)?;
    sys::pin(fresh, &new)?;
    std::fs::rename(&new, &path).map_err(|source| PinError::Io { operation: "rename", path: new.clone(), source })?;
    Ok(())
}

/// Elements that a pinned map has room for.
pub(super) fn pinned_size(pins: &Pins, name: &'static str) -> Result<u32, DataplaneError> {
    let info = MapInfo::from_pin(pins.map(name)).map_err(|source| MapsError::Map { map: name, source })?;
    Ok(info.max_entries())
}

/// Compares the pinned maps with what this version would make, but for their sizes: aya takes whatever it finds under a
/// pin.
fn check_compatible(pins: &Pins, shapes: &[Shape]) -> Result<(), DataplaneError> {
    for expected in shapes {
        let name = expected.name;
        let info = MapInfo::from_pin(pins.map(name)).map_err(|source| MapsError::Map { map: name, source })?;
        let found_type = info.map_type().unwrap_or(MapType::Unspecified);
        let mut differences = Vec::new();
        if found_type != expected.map_type {
            differences.push(format!("type {found_type:?}, expected {:?}", expected.map_type));
        }
        if info.key_size() != expected.key_size {
            differences.push(format!("key of {} bytes, expected {}", info.key_size(), expected.key_size));
        }
        if info.value_size() != expected.value_size {
            differences.push(format!("value of {} bytes, expected {}", info.value_size(), expected.value_size));
        }
        if !differences.is_empty() {
            return Err(DataplaneError::Incompatible { map: name, difference: differences.join(", ") });
        }
    }
    Ok(())
}
