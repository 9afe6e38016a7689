//! docs/semantics.md says for each point of the API which tests prove it: the tests that it names are in the tree, and no
//! point is left out.

#[path = "support/citations.rs"]
mod citations;

use citations::{assert_named_tests_exist, citations, files, read};

/// The points, by letter and number.
const POINTS: [(char, usize); 6] = [('A', 17), ('P', 11), ('B', 9), ('F', 8), ('W', 12), ('X', 12)];

fn document() -> String {
    read("docs/semantics.md")
}

/// The cited tests of a text that only run where they are asked for, as `cargo xtask conformance --all` does.
fn ignored<'a>(document: &'a str, text: &'a str) -> Vec<&'a str> {
    let files = files(document);
    let is_ignored = |(key, name): &(&str, &str)| {
        let (_, file) = files.get(key)?;
        let (before, _) = file.split_once(&format!("fn {name}("))?;
        // The function's attributes begin behind the last line that is empty.
        before.rsplit("\n\n").next().map(|attributes| attributes.contains("#[ignore"))
    };
    citations(text).into_iter().filter(|citation| is_ignored(citation) == Some(true)).map(|(_, name)| name).collect()
}

#[test]
fn every_test_that_the_document_names_is_in_the_tree() {
    assert_named_tests_exist(&document(), 100);
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

#[test]
fn what_proves_a_point_only_in_the_long_run_is_said_to() {
    let document = document();
    let mut found = 0;
    for paragraph in document.split("\n\n") {
        let ignored = ignored(&document, paragraph);
        found += ignored.len();
        assert!(ignored.is_empty() || paragraph.contains("only in `cargo xtask conformance --all`"), "{ignored:?}");
    }
    assert!(found > 0, "no cited test is ignored: is that looked for where it stands?");
}
