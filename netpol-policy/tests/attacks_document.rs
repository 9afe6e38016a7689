//! docs/attacks.md says for each attack which test fails when the rule against it is taken out: the tests that it names are
//! in the tree, and the suite has none that it does not name.

#[path = "support/citations.rs"]
mod citations;

use std::collections::BTreeSet;

use citations::{assert_named_tests_exist, citations, files, read, root};

/// The suite's folder.
const SUITE: &str = "tests/suites/tests/attacks";

fn document() -> String {
    read("docs/attacks.md")
}

/// The functions that are tests in a file.
fn tests(text: &str) -> impl Iterator<Item = &str> {
    text.split("#[test]\n").skip(1).filter_map(|rest| rest.trim_start().strip_prefix("fn ")?.split('(').next())
}

#[test]
fn every_test_that_the_document_names_is_in_the_tree() {
    assert_named_tests_exist(&document(), 50);
}

#[test]
fn every_test_of_the_suite_is_named() {
    let document = document();
    let named: BTreeSet<(&str, &str)> =
        citations(&document).into_iter().filter_map(|(key, name)| Some((files(&document).get(key)?.0, name))).collect();
    let mut unnamed = Vec::new();
    let mut count = 0;
    for entry in std::fs::read_dir(root().join(SUITE)).unwrap() {
        let file = format!("{SUITE}/{}", entry.unwrap().file_name().to_string_lossy());
        // What a helper is tested by is no attack.
        let text = read(&file);
        let attacks = text.split("\nmod tests {").next().unwrap_or_default();
        for name in tests(attacks) {
            count += 1;
            if !named.contains(&(file.as_str(), name)) {
                unnamed.push(format!("{file}: {name}"));
            }
        }
    }
    assert!(count > 20, "{count}");
    assert!(unnamed.is_empty(), "{unnamed:#?}");
}

#[test]
fn every_row_of_the_document_has_a_rule_and_a_test() {
    let document = document();
    let rows = document.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| `"));
    let rows: Vec<Vec<&str>> = rows.map(|line| line.trim_matches('|').split(" | ").map(str::trim).collect()).collect();
    let rows: Vec<_> = rows.into_iter().filter(|row| row.len() == 3 && row[2] != "test").collect();
    assert!(rows.len() > 30, "{}", rows.len());
    for row in rows {
        assert!(!row[1].is_empty() && !citations(row[2]).is_empty(), "{row:?}");
    }
}
