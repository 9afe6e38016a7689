//! docs/semantics.md says for each point of the API which tests prove it: the tests that it names are in the tree, and no
//! point is left out.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The points, by letter and number.
const POINTS: [(char, usize); 6] = [('A', 17), ('P', 11), ('B', 9), ('F', 8), ('W', 12), ('X', 12)];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn document() -> String {
    std::fs::read_to_string(root().join("docs/semantics.md")).unwrap()
}

/// What stands between backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// The files that the document's keys stand for, with their contents.
fn files(document: &str) -> BTreeMap<&str, (&str, String)> {
    let row = |line| -> Option<(&str, &str)> {
        let mut cells = str::split(line, '|').map(str::trim).skip(1);
        let key = cells.next()?.strip_prefix('`')?.strip_suffix('`')?;
        Some((key, cells.next()?))
    };
    let read = |(key, file)| {
        let text = std::fs::read_to_string(root().join(file));
        (key, (file, text.unwrap_or_else(|error| panic!("{file}: {error}"))))
    };
    document.lines().filter_map(row).map(read).collect()
}

/// Every `key::name`. IPv6 addresses have nothing in front of their colons.
fn citations(text: &str) -> Vec<(&str, &str)> {
    quoted(text).filter_map(|quoted| quoted.split_once("::")).filter(|(key, _)| !key.is_empty()).collect()
}

#[test]
fn every_test_that_the_document_names_is_in_the_tree() {
    let document = document();
    let files = files(&document);
    let citations = citations(&document);
    assert!(citations.len() > 100, "only {} tests are named", citations.len());
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

#[test]
fn every_point_of_the_api_has_a_paragraph_and_tests() {
    let document = document();
    let paragraphs: Vec<&str> = document.split("\n\n").collect();
    for (letter, last) in POINTS {
        for number in 1..=last {
            let head = format!("**{letter}{number}. ");
            let of_point: Vec<&&str> = paragraphs.iter().filter(|paragraph| paragraph.starts_with(&head)).collect();
            assert_eq!(of_point.len(), 1, "{letter}{number}");
            for paragraph in of_point {
                let tests = paragraph.split_once("\nTests: ").map(|(_, tests)| citations(tests).len());
                assert!(tests > Some(0), "{letter}{number} names no test");
            }
        }
    }
}
