//! An initramfs: a cpio archive in the format `newc`, which the kernel unpacks into its first file system
//! (Documentation/driver-api/early-userspace/buffer-format.rst).

use std::collections::BTreeSet;

use anyhow::{Context, Result};

const DIRECTORY: u32 = 0o040_755;
const FILE: u32 = 0o100_000;
const LINK: u32 = 0o120_777;
const CHARACTER_DEVICE: u32 = 0o020_600;

/// An archive that is being written. Folders come with what is in them.
#[derive(Default)]
pub(super) struct Archive {
    bytes: Vec<u8>,
    folders: BTreeSet<String>,
    number: u32,
}

impl Archive {
    /// Adds an empty folder and those that lead to it.
    ///
    /// # Errors
    /// The name is too long.
    pub(super) fn folder(&mut self, path: &str) -> Result<()> {
        let path = path.trim_matches('/');
        if path.is_empty() || self.folders.contains(path) {
            return Ok(());
        }
        self.parents(path)?;
        self.folders.insert(path.to_owned());
        self.entry(path, DIRECTORY, (0, 0), &[])
    }

    /// Adds a file.
    ///
    /// # Errors
    /// It is larger than 4 GiB.
    pub(super) fn file(&mut self, path: &str, mode: u32, content: &[u8]) -> Result<()> {
        self.parents(path)?;
        self.entry(path, FILE | mode, (0, 0), content)
    }

    /// Adds a symbolic link.
    ///
    /// # Errors
    /// The name is too long.
    pub(super) fn link(&mut self, path: &str, to: &str) -> Result<()> {
        self.parents(path)?;
        self.entry(path, LINK, (0, 0), to.as_bytes())
    }

    /// Adds a character device.
    ///
    /// # Errors
    /// The name is too long.
    pub(super) fn device(&mut self, path: &str, number: (u32, u32)) -> Result<()> {
        self.parents(path)?;
        self.entry(path, CHARACTER_DEVICE, number, &[])
    }

    /// The archive's bytes.
    ///
    /// # Errors
    /// None that could happen: the last entry has a fixed name.
    pub(super) fn finish(mut self) -> Result<Vec<u8>> {
        self.entry("TRAILER!!!", 0, (0, 0), &[])?;
        Ok(self.bytes)
    }

    fn parents(&mut self, path: &str) -> Result<()> {
        match path.trim_matches('/').rsplit_once('/') {
            Some((parent, _)) => self.folder(parent),
            None => Ok(()),
        }
    }

    fn entry(&mut self, path: &str, mode: u32, device: (u32, u32), content: &[u8]) -> Result<()> {
        let name = path.trim_matches('/');
        let size = u32::try_from(content.len()).with_context(|| format!("{name} is too large"))?;
        let length = u32::try_from(name.len() + 1).with_context(|| format!("{name} is too long a name"))?;
        // Entries with one inode number are links to one file.
        self.number += 1;
        self.bytes.extend_from_slice(b"070701");
        // Inode, mode, user, group, links, time, size, device of the file system, device, length of the name, check sum.
        for field in [self.number, mode, 0, 0, 1, 0, size, 0, 0, device.0, device.1, length, 0] {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
        Ok(())
    }

    /// Headers with names, and contents, fill whole words.
    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The fields of an entry, its name and content, read by the format's description.
    fn entries(archive: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut rest = archive;
        let mut entries = Vec::new();
        while !rest.is_empty() {
            assert_eq!(&rest[..6], b"070701");
            let field = |index: usize| {
                let text = std::str::from_utf8(&rest[6 + index * 8..14 + index * 8]).unwrap();
                usize::from_str_radix(text, 16).unwrap()
            };
            let (mode, size, length) = (field(1), field(6), field(11));
            let name = String::from_utf8(rest[110..110 + length - 1].to_vec()).unwrap();
            let begin = (110 + length).next_multiple_of(4);
            entries.push((name, mode as u32, rest[begin..begin + size].to_vec()));
            rest = &rest[(begin + size).next_multiple_of(4)..];
        }
        entries
    }

    #[test]
    fn folders_come_before_what_is_in_them_and_once() {
        let mut archive = Archive::default();
        archive.file("/usr/bin/ip", 0o755, b"\x7fELF5").unwrap();
        archive.link("bin", "usr/bin").unwrap();
        archive.file("usr/bin/nft", 0o755, b"").unwrap();
        archive.device("dev/console", (5, 1)).unwrap();
        let entries = entries(&archive.finish().unwrap());
        let names: Vec<&str> = entries.iter().map(|(name, ..)| &**name).collect();
        assert_eq!(names, ["usr", "usr/bin", "usr/bin/ip", "bin", "usr/bin/nft", "dev", "dev/console", "TRAILER!!!"]);
        assert_eq!(entries[2].1, 0o100_755);
        assert_eq!(entries[2].2, b"\x7fELF5");
        assert_eq!(entries[3].2, b"usr/bin");
        assert_eq!(entries[6].1, 0o020_600);
    }
}
