//! docs/semantics.md says for each point of the API which tests prove it: the tests that it names are in the tree, and no
//! point is left out.

#[path = "support/citations.rs"]
mod citations;

use citations::{assert_named_tests_exist, citations, read};

/// The points, by letter and number.
const POINTS: [(char, usize); 6] = [('A', 17), ('P', 11), ('B', 9), ('F', 8), ('W', 12), ('X', 12)];

fn document() -> String {
    read("docs/semantics.md")
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
