//! Documents that name tests: a table of keys and files, and `key::name` between backticks wherever a test is meant.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// A file of the workspace.
pub(crate) fn read(file: &str) -> String {
    std::fs::read_to_string(root().join(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

/// What stands between backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// The files that the document's keys stand for, with their contents.
pub(crate) fn files(document: &str) -> BTreeMap<&str, (&str, String)> {
    let row = |line| -> Option<(&str, &str)> {
        let mut cells = str::split(line, '|').map(str::trim).skip(1);
        let key = cells.next()?.strip_prefix('`')?.strip_suffix('`')?;
        Some((key, cells.next()?))
    };
    document.lines().filter_map(row).map(|(key, file)| (key, (file, read(file)))).collect()
}

/// Every `key::name`. IPv6 addresses have nothing in front of their colons.
pub(crate) fn citations(text: &str) -> Vec<(&str, &str)> {
    quoted(text).filter_map(|quoted| quoted.split_once("::")).filter(|(key, _)| !key.is_empty()).collect()
}

/// Insists that the document names so many tests, each in a file of the tree, and uses each of its keys.
#[track_caller]
pub(crate) fn assert_named_tests_exist(document: &str, at_least: usize) {
    let files = files(document);
    let citations = citations(document);
    assert!(citations.len() > at_least, "only {} tests are named", citations.len());
    let mut missing = Vec::new();
    for (key, name) in &citations {
        let Some((file, text)) = files.get(key) else {
            missing.push(format!("{key}::{name}: no file has this key"));
            continue;
        };
        // Functions, and rows of the table of upstream's tests.
        let is_there = text.contains(&format!("fn {name}(")) || text.contains(&format!("row(\"{name}\", "));
        if !is_there {
            missing.push(format!("{key}::{name}: not in {file}"));
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
    let used: BTreeSet<&str> = citations.iter().map(|(key, _)| *key).collect();
    let unused: Vec<&&str> = files.keys().filter(|key| !used.contains(**key)).collect();
    assert!(unused.is_empty(), "keys that no test is named by: {unused:?}");
}
