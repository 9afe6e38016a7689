//! Rebuilds the programs when the linker changes: its version decides what the instructions look like.

fn main() {
    let Some(path) = std::env::var_os("PATH") else { return };
    if let Some(linker) =
        std::env::split_paths(&path).map(|folder| folder.join("bpf-linker")).find(|file| file.exists())
    {
        println!("cargo:rerun-if-changed={}", linker.display());
    }
}
