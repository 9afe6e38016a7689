//! What virtual machines take: an emulator, and programs that make their file system. Kernels are downloaded when they
//! are asked for ([`crate::vm`]), not here.

use anyhow::Result;

use super::packages;

/// Programs, and the package that brings each.
const PROGRAMS: [(&str, &str); 10] = [
    ("qemu-system-x86_64", "qemu-system-x86"),
    // Indices of modules; and modprobe, which runs inside.
    ("depmod", "kmod"),
    ("modprobe", "kmod"),
    // Runs inside: Services of IPVS.
    ("ipvsadm", "ipvsadm"),
    // Runs inside: tests of attacks set the node's switches by it.
    ("sysctl", "procps"),
    // What is in a package of Debian, and in lists of packages.
    ("dpkg-deb", "dpkg"),
    ("xz", "xz-utils"),
    ("curl", "curl"),
    // Test binaries without what only debuggers read.
    ("strip", "binutils"),
    // The shared libraries of a program.
    ("ldd", "libc-bin"),
];

pub(super) fn missing() -> Option<String> {
    packages::missing_of(&PROGRAMS)
}

pub(super) fn install() -> Result<()> {
    packages::install_of(&PROGRAMS)
}
