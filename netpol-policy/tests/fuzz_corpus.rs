//! Every input of the fuzz targets' corpora, and every one that a fuzzer has found, once more.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use netpol_policy::testing::fuzz::TARGETS;

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("fuzz/corpus")
}

fn inputs(target: &str) -> Vec<PathBuf> {
    let folder = corpus().join(target);
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut inputs: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    inputs.sort();
    inputs
}

#[test]
fn every_input_of_the_corpora_holds() {
    for (target, body) in TARGETS {
        let inputs = inputs(target);
        for input in &inputs {
            let bytes = std::fs::read(input).unwrap();
            let held = std::panic::catch_unwind(|| body(&bytes));
            assert!(held.is_ok(), "{}", input.display());
        }
        println!("{target}: {} inputs", inputs.len());
        assert!(inputs.len() > 20, "{target}: only {}", inputs.len());
    }
}

#[test]
fn every_target_has_a_binary_and_a_corpus_and_no_other_has() {
    let names: BTreeSet<String> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    let of = |folder: PathBuf| -> BTreeSet<String> {
        let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        entries.filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned())).collect()
    };
    assert_eq!(of(corpus()), names);
    assert_eq!(of(corpus().parent().unwrap().join("fuzz_targets")), names);
}
