//! All elements of a map, whatever its keys and values are made of: what a test has left must not be found by the next.

use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};

use anyhow::{Context as _, Result, bail};
use aya::maps::{Map, MapData};

use super::raw;

/// Commands of bpf(2).
const MAP_UPDATE_ELEM: libc::c_long = 2;
const MAP_DELETE_ELEM: libc::c_long = 3;
const MAP_GET_NEXT_KEY: libc::c_long = 4;

/// `union bpf_attr` of these commands.
#[repr(C)]
struct Attributes {
    map: u32,
    pad: u32,
    key: u64,
    /// Or where the next key is written to.
    value: u64,
    flags: u64,
}

impl Attributes {
    fn new(map: BorrowedFd<'_>, key: Option<&[u8]>, value: u64) -> Self {
        let key = key.map_or(0, |key| key.as_ptr() as u64);
        Self { map: map.as_raw_fd().unsigned_abs(), pad: 0, key, value, flags: 0 }
    }
}

/// Makes a map what it was when it was created.
///
/// # Errors
/// The kernel refuses, or this kind of map is not known here.
pub fn reset(map: &Map) -> Result<()> {
    match map {
        Map::HashMap(data) | Map::LruHashMap(data) | Map::LpmTrie(data) => remove_all(data),
        Map::Array(data) => zero_all(data),
        _ => bail!("elements of this kind of map cannot be removed: {map:?}"),
    }
}

fn remove_all(map: &MapData) -> Result<()> {
    let info = map.info().context("BPF_OBJ_GET_INFO_BY_FD")?;
    let size = usize::try_from(info.key_size()).context("a key's size")?;
    // First all of them: after a removed key, a walk would begin anew.
    let mut keys: Vec<Vec<u8>> = Vec::new();
    loop {
        let mut next = vec![0_u8; size];
        let mut attributes =
            Attributes::new(map.fd().as_fd(), keys.last().map(Vec::as_slice), next.as_mut_ptr() as u64);
        match raw::bpf(MAP_GET_NEXT_KEY, &mut attributes) {
            Ok(_) => keys.push(next),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => break,
            Err(error) => return Err(error).context("BPF_MAP_GET_NEXT_KEY"),
        }
    }
    for key in keys {
        let mut attributes = Attributes::new(map.fd().as_fd(), Some(&key), 0);
        raw::bpf(MAP_DELETE_ELEM, &mut attributes).context("BPF_MAP_DELETE_ELEM")?;
    }
    Ok(())
}

fn zero_all(map: &MapData) -> Result<()> {
    let info = map.info().context("BPF_OBJ_GET_INFO_BY_FD")?;
    let zeros = vec![0_u8; usize::try_from(info.value_size()).context("a value's size")?];
    for index in 0..info.max_entries() {
        let key = index.to_ne_bytes();
        let mut attributes = Attributes::new(map.fd().as_fd(), Some(&key), zeros.as_ptr() as u64);
        raw::bpf(MAP_UPDATE_ELEM, &mut attributes).context("BPF_MAP_UPDATE_ELEM")?;
    }
    Ok(())
}
