//! A tar archive in memory (POSIX ustar), as much of it as an image needs: directories and files of root, no times. The same
//! input always gives the same bytes.

use anyhow::{Result, bail};

/// Headers and contents fill whole blocks.
const BLOCK: usize = 512;

/// What a header calls an entry.
#[derive(Clone, Copy)]
enum Kind {
    File,
    Directory,
}

/// An archive that is being written.
#[derive(Default)]
pub(super) struct Tar(Vec<u8>);

impl Tar {
    /// Adds a directory; its name ends with a slash.
    ///
    /// # Errors
    /// The name is too long.
    pub(super) fn directory(&mut self, name: &str, mode: u32) -> Result<()> {
        self.entry(name, mode, Kind::Directory, &[])
    }

    /// Adds a file.
    ///
    /// # Errors
    /// The name is too long, or the content larger than 8 GiB.
    pub(super) fn file(&mut self, name: &str, mode: u32, content: &[u8]) -> Result<()> {
        self.entry(name, mode, Kind::File, content)
    }

    /// The bytes of the archive.
    pub(super) fn finish(mut self) -> Vec<u8> {
        // Two empty blocks end an archive.
        self.0.resize(self.0.len() + 2 * BLOCK, 0);
        self.0
    }

    fn entry(&mut self, name: &str, mode: u32, kind: Kind, content: &[u8]) -> Result<()> {
        let mut header = [0; BLOCK];
        // Longer names would be split into two fields.
        if name.len() > 100 {
            bail!("{name}: longer than 100 bytes");
        }
        header[..name.len()].copy_from_slice(name.as_bytes());
        octal(&mut header[100..108], u64::from(mode))?;
        octal(&mut header[108..116], 0)?; // user
        octal(&mut header[116..124], 0)?; // group
        octal(&mut header[124..136], content.len() as u64)?;
        octal(&mut header[136..148], 0)?; // time
        header[156] = match kind {
            Kind::File => b'0',
            Kind::Directory => b'5',
        };
        header[257..265].copy_from_slice(b"ustar\x0000");
        // The sum is taken with its own field full of spaces.
        header[148..156].fill(b' ');
        let sum = header.iter().map(|byte| u64::from(*byte)).sum();
        octal(&mut header[148..155], sum)?;
        self.0.extend_from_slice(&header);
        self.0.extend_from_slice(content);
        self.0.resize(self.0.len().next_multiple_of(BLOCK), 0);
        Ok(())
    }
}

/// Fills a field with digits and a final NUL.
fn octal(field: &mut [u8], value: u64) -> Result<()> {
    let digits = field.len() - 1;
    let text = format!("{value:0digits$o}");
    if text.len() > digits {
        bail!("{value} does not fit into {digits} octal digits");
    }
    field[..digits].copy_from_slice(text.as_bytes());
    field[digits] = 0;
    Ok(())
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeMap;
    use std::process::Command;

    use super::*;

    /// Files of an archive by name, read by the system's own tar.
    pub(in super::super) fn extract(archive: &[u8]) -> BTreeMap<String, Vec<u8>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("archive.tar");
        std::fs::write(&path, archive).unwrap();
        let tar = |arguments: &[&str]| {
            let output = Command::new("tar").args(arguments).arg("--file").arg(&path).output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8(output.stdout).unwrap()
        };
        let into = format!("--directory={}", folder.path().display());
        tar(&["--extract", &into]);
        let names = tar(&["--list"]);
        let files = names.lines().filter(|name| !name.ends_with('/'));
        files.map(|name| (name.to_owned(), std::fs::read(folder.path().join(name)).unwrap())).collect()
    }

    #[test]
    fn what_is_written_is_what_the_systems_tar_reads() {
        let mut tar = Tar::default();
        tar.directory("blobs/", 0o755).unwrap();
        tar.file("blobs/odd", 0o644, &[7; 513]).unwrap();
        tar.file("empty", 0o755, &[]).unwrap();
        let archive = tar.finish();
        assert_eq!(archive.len() % BLOCK, 0);
        let expected = [("blobs/odd".to_owned(), vec![7; 513]), ("empty".to_owned(), Vec::new())];
        assert_eq!(extract(&archive), BTreeMap::from(expected));
    }

    #[test]
    fn names_and_sizes_that_do_not_fit_are_refused() {
        let mut tar = Tar::default();
        assert!(tar.file(&"x".repeat(101), 0o644, &[]).is_err());
        assert!(octal(&mut [0; 3], 0o77).is_ok());
        assert!(octal(&mut [0; 3], 0o100).is_err());
    }
}
