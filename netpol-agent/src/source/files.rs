//! A manifest file taken apart: text to documents, documents to objects.
//!
//! Documents are parsed one by one, so that an error in one has a number and leaves the others alone.

use serde_json::Value;

/// One object as written, and its place.
#[derive(Clone, Debug, PartialEq)]
pub struct Written {
    /// Document in the file, from 1.
    pub document: usize,
    /// Item of the document, from 1, if that is a list.
    pub item: Option<usize>,
    /// The object.
    pub value: Value,
}

/// A document that is not YAML or JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unparsable {
    /// Document in the file, from 1.
    pub document: usize,
    /// What the parser says, with line and column of the file.
    pub message: String,
}

/// A file taken apart.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Parsed {
    /// Objects, lists taken apart, empty documents left out.
    pub objects: Vec<Written>,
    /// Documents that could not be parsed.
    pub errors: Vec<Unparsable>,
}

/// Whether a directory entry is a manifest. Hidden files are not: editors and the kubelet keep theirs beside ours.
#[must_use]
pub fn is_manifest(name: &str) -> bool {
    !name.starts_with('.') && [".yaml", ".yml", ".json"].iter().any(|extension| name.ends_with(extension))
}

/// Takes a file apart; its name tells JSON from YAML.
#[must_use]
pub fn parse(name: &str, text: &str) -> Parsed {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut parsed = Parsed::default();
    if name.ends_with(".json") {
        parse_json(text, &mut parsed);
    } else {
        for (index, document) in split_yaml(text).into_iter().enumerate() {
            match parse_yaml(&document) {
                Ok(value) => parsed.add(index + 1, value),
                Err(message) => parsed.errors.push(Unparsable { document: index + 1, message }),
            }
        }
    }
    parsed
}

impl Parsed {
    fn add(&mut self, document: usize, value: Value) {
        if value.is_null() {
            return;
        }
        let is_list = value.get("items").is_some_and(Value::is_array);
        let written = netpol_policy::decode::flatten(value).into_iter().enumerate().map(|(index, value)| Written {
            document,
            item: is_list.then_some(index + 1),
            value,
        });
        self.objects.extend(written);
    }
}

/// Objects one after the other, as `jq` and `kubectl get -w` write them.
fn parse_json(text: &str, parsed: &mut Parsed) {
    for (index, value) in serde_json::Deserializer::from_str(text).into_iter::<Value>().enumerate() {
        match value {
            Ok(value) => parsed.add(index + 1, value),
            // The stream cannot find the start of the next value.
            Err(error) => {
                parsed.errors.push(Unparsable { document: index + 1, message: error.to_string() });
                break;
            }
        }
    }
}

fn parse_yaml(document: &str) -> Result<Value, String> {
    let options = serde_saphyr::options! {
        // One line for the log. The text itself may hold what should not be there.
        with_snippet: false,
        // A list of all pods of a large cluster is a legitimate document; aliases have limits of their own.
        budget: serde_saphyr::budget! { max_events: 20_000_000, max_nodes: 5_000_000 },
    };
    serde_saphyr::from_str_with_options(document, options).map_err(|error| error.to_string())
}

/// Cuts at document markers. Each piece is padded with as many empty lines as were before it, so that the parser's
/// line numbers are those of the file. What is only directives and comments belongs to the document that follows.
fn split_yaml(text: &str) -> Vec<String> {
    let mut documents = Vec::new();
    let mut current = String::new();
    let mut is_begun = false;
    for (number, line) in text.split_inclusive('\n').enumerate() {
        let is_marker = line.trim_end() == "---" || line.starts_with("--- ");
        if is_marker && is_begun {
            documents.push(std::mem::replace(&mut current, "\n".repeat(number)));
        }
        let is_content = !line.trim().is_empty() && !line.starts_with('%') && !line.trim_start().starts_with('#');
        is_begun |= is_marker || is_content;
        current.push_str(line);
    }
    if is_begun {
        documents.push(current);
    }
    documents
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(parsed: &Parsed) -> Vec<(usize, Option<usize>, String)> {
        let name = |written: &Written| written.value["metadata"]["name"].as_str().unwrap_or("?").to_owned();
        parsed.objects.iter().map(|written| (written.document, written.item, name(written))).collect()
    }

    fn document(name: &str) -> String {
        format!("apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {name}\n")
    }

    #[test]
    fn documents_are_numbered_from_one() {
        let text = format!("{}---\n{}---\n{}", document("a"), document("b"), document("c"));
        assert_eq!(
            names(&parse("x.yaml", &text)),
            [(1, None, "a".into()), (2, None, "b".into()), (3, None, "c".into())]
        );
    }

    #[test]
    fn a_leading_marker_or_comment_is_no_document() {
        for head in ["---\n", "# licence\n---\n", "%YAML 1.2\n---\n", "\u{feff}---\n", "\n\n", "--- # first\n"] {
            let text = format!("{head}{}---\n{}", document("a"), document("b"));
            let parsed = parse("x.yaml", &text);
            assert_eq!(parsed.errors, [], "{head:?}");
            assert_eq!(names(&parsed), [(1, None, "a".into()), (2, None, "b".into())], "{head:?}");
        }
    }

    #[test]
    fn an_empty_document_counts_and_says_nothing() {
        let text = format!("{}---\n# later\n---\n{}---\n", document("a"), document("b"));
        assert_eq!(names(&parse("x.yaml", &text)), [(1, None, "a".into()), (3, None, "b".into())]);
        assert_eq!(parse("x.yaml", "# nothing\n"), Parsed::default());
        assert_eq!(parse("x.yaml", ""), Parsed::default());
        assert_eq!(parse("x.json", " \n"), Parsed::default());
    }

    #[test]
    fn windows_line_ends_are_line_ends() {
        let text = format!("{}---\n{}", document("a"), document("b")).replace('\n', "\r\n");
        assert_eq!(names(&parse("x.yaml", &text)).len(), 2);
    }

    #[test]
    fn a_marker_inside_a_block_scalar_is_text() {
        let text = "kind: ConfigMap\nmetadata:\n  name: a\ndata:\n  inner: |\n    x: 1\n    ---\n    y: 2\n";
        let parsed = parse("x.yaml", text);
        assert_eq!(names(&parsed), [(1, None, "a".into())]);
        assert_eq!(parsed.objects[0].value["data"]["inner"], "x: 1\n---\ny: 2\n");
    }

    #[test]
    fn lists_are_taken_apart() {
        let text = "kind: List\nitems:\n- {kind: Pod, metadata: {name: a}}\n- {kind: Pod, metadata: {name: b}}\n";
        assert_eq!(names(&parse("x.yml", text)), [(1, Some(1), "a".into()), (1, Some(2), "b".into())]);
        let typed = r#"{"kind":"PodList","apiVersion":"v1","items":[{"metadata":{"name":"a"}}]}"#;
        let parsed = parse("x.json", typed);
        assert_eq!(parsed.objects[0].value["kind"], "Pod");
    }

    #[test]
    fn an_error_names_its_document_and_the_line_in_the_file() {
        let text = format!("{}---\nkind: [\n---\n{}", document("a"), document("c"));
        let parsed = parse("x.yaml", &text);
        assert_eq!(names(&parsed), [(1, None, "a".into()), (3, None, "c".into())]);
        let [Unparsable { document: 2, message }] = &parsed.errors[..] else { panic!("{parsed:?}") };
        assert!(message.contains("line 6") || message.contains("line 7"), "{message}");
        assert!(!message.contains('\n'), "{message}");
    }

    #[test]
    fn a_key_that_is_there_twice_is_an_error() {
        let parsed = parse("x.yaml", "kind: Pod\nmetadata:\n  name: a\n  name: b\n");
        assert_eq!((parsed.objects.len(), parsed.errors.len()), (0, 1));
    }

    #[test]
    fn scalars_have_the_types_that_kubectl_gives_them() {
        let parsed = parse("x.yaml", "a: 8080\nb: \"8080\"\nc: true\nd: ~\ne: 1.5\nf: 10.0.0.0/8\n1: x\n");
        let expected = serde_json::json!({
            "a": 8080, "b": "8080", "c": true, "d": null, "e": 1.5, "f": "10.0.0.0/8", "1": "x"
        });
        assert_eq!(parsed.objects[0].value, expected);
    }

    #[test]
    fn only_visible_yaml_and_json_are_manifests() {
        for name in ["a.yaml", "b.yml", "c.json"] {
            assert!(is_manifest(name), "{name}");
        }
        for name in ["a.yaml~", ".a.yaml.swp", ".hidden.yaml", "README.md", "..data", "yaml"] {
            assert!(!is_manifest(name), "{name}");
        }
    }
}
