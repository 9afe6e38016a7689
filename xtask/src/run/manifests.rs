//! A folder of manifests, read again whenever it changes.
//!
//! All `*.yaml`, `*.yml` and `*.json` files, without subfolders, in order of their names. A file that does not parse
//! keeps saying what it said before, as it does for the agent: it is probably half written.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use netpol_policy::decode::Rejected;
use serde_json::Value;

/// The folder, with what it said last.
pub(super) struct Folder {
    path: PathBuf,
    files: BTreeMap<String, File>,
}

struct File {
    text: String,
    documents: Vec<(usize, Value)>,
    errors: Vec<String>,
}

/// Everything in a folder.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Manifests {
    /// Documents, in order.
    pub(super) values: Vec<Value>,
    /// Where each is written.
    places: Vec<String>,
    /// What could not be parsed.
    pub(super) errors: Vec<String>,
}

impl Folder {
    pub(super) fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), files: BTreeMap::new() }
    }

    /// Reads the folder, and returns what is in it if that is not what was in it before.
    pub(super) fn read(&mut self) -> Result<Option<Manifests>> {
        let mut texts = BTreeMap::new();
        let entries = std::fs::read_dir(&self.path).with_context(|| format!("cannot read {}", self.path.display()))?;
        for entry in entries {
            let entry = entry.with_context(|| format!("cannot read {}", self.path.display()))?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            if is_manifest(&name) {
                // Gone since it was listed, or no text: an editor's doing, or it will be seen again.
                if let Ok(text) = std::fs::read_to_string(entry.path()) {
                    texts.insert(name, text);
                }
            }
        }
        let is_same = self.files.len() == texts.len()
            && texts.iter().all(|(name, text)| self.files.get(name).is_some_and(|file| file.text == *text));
        if is_same && !self.files.is_empty() {
            return Ok(None);
        }
        let mut before = std::mem::take(&mut self.files);
        for (name, text) in texts {
            let file = match before.remove(&name) {
                Some(file) if file.text == text => file,
                last => File::parse(&name, text, last),
            };
            self.files.insert(name, file);
        }
        Ok(Some(self.manifests()))
    }

    fn manifests(&self) -> Manifests {
        let mut all = Manifests::default();
        for (name, file) in &self.files {
            for (number, value) in &file.documents {
                all.values.push(value.clone());
                all.places.push(format!("{name}, document {number}"));
            }
            all.errors.extend(file.errors.iter().cloned());
        }
        all
    }
}

impl Manifests {
    /// A line about an object that was refused, with its place.
    pub(super) fn describe(&self, index: Option<usize>, rejected: &Rejected) -> String {
        let index = index.or_else(|| {
            let name = rejected.name.as_ref()?;
            let is_it = |value: &Value| {
                value["kind"] == *rejected.kind
                    && value["metadata"]["name"] == *name.name
                    && value["metadata"]["namespace"].as_str().is_none_or(|namespace| namespace == name.namespace)
            };
            let holds =
                |value: &Value| is_it(value) || value["items"].as_array().is_some_and(|items| items.iter().any(is_it));
            self.values.iter().position(holds)
        });
        match index.and_then(|index| self.places.get(index)) {
            Some(place) => format!("{place}: {rejected}"),
            None => rejected.to_string(),
        }
    }
}

impl File {
    fn parse(name: &str, text: String, last: Option<Self>) -> Self {
        let mut documents = Vec::new();
        let mut errors = Vec::new();
        let is_json = Path::new(name).extension().is_some_and(|extension| extension == "json");
        let parsed: Vec<Result<Value, String>> = if is_json {
            serde_json::Deserializer::from_str(&text)
                .into_iter()
                .map(|value| value.map_err(|error| error.to_string()))
                .collect()
        } else {
            // One line an error; and what is not understood may be anything.
            let options = serde_saphyr::options! { with_snippet: false };
            let parse = |document: String| {
                serde_saphyr::from_str_with_options(&document, options.clone()).map_err(|error| error.to_string())
            };
            split(&text).into_iter().map(parse).collect()
        };
        for (index, document) in parsed.into_iter().enumerate() {
            match document {
                Ok(Value::Null) => {}
                Ok(value) => documents.push((index + 1, value)),
                Err(error) => errors.push(format!("{name}, document {}: {error}", index + 1)),
            }
        }
        if let Some(last) = last
            && !errors.is_empty()
        {
            documents = last.documents;
        }
        Self { text, documents, errors }
    }
}

fn is_manifest(name: &str) -> bool {
    !name.starts_with('.') && [".yaml", ".yml", ".json"].iter().any(|extension| name.ends_with(extension))
}

/// Cuts YAML at its document markers. What is only comments and directives belongs to the document after it; the lines
/// before are kept as empty ones, so that the parser's line numbers are those of the file.
fn split(text: &str) -> Vec<String> {
    let mut documents = Vec::new();
    let mut current = String::new();
    let mut is_begun = false;
    for (number, line) in text.lines().enumerate() {
        let is_marker = line.trim_end() == "---" || line.starts_with("--- ");
        if is_marker && is_begun {
            documents.push(std::mem::replace(&mut current, "\n".repeat(number)));
        }
        is_begun |=
            is_marker || !(line.trim().is_empty() || line.starts_with('%') || line.trim_start().starts_with('#'));
        current.push_str(line);
        current.push('\n');
    }
    if is_begun {
        documents.push(current);
    }
    documents
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(folder: &Path, name: &str, text: &str) {
        std::fs::write(folder.join(name), text).unwrap();
    }

    #[test]
    fn documents_are_read_in_order_and_only_when_they_change() {
        let temporary = tempfile::tempdir().unwrap();
        write(temporary.path(), "b.yaml", "# head\n---\nkind: B\n---\n# nothing\n---\nkind: C\n");
        write(temporary.path(), "a.json", "{\"kind\": \"A\"}\n{\"kind\": \"A2\"}");
        write(temporary.path(), ".hidden.yaml", "kind: X\n");
        write(temporary.path(), "notes.txt", "kind: X\n");
        let mut folder = Folder::new(temporary.path());
        let read = folder.read().unwrap().unwrap();
        let kinds: Vec<&str> = read.values.iter().filter_map(|value| value["kind"].as_str()).collect();
        assert_eq!(kinds, ["A", "A2", "B", "C"]);
        assert_eq!(read.places[3], "b.yaml, document 3");
        assert_eq!(folder.read().unwrap(), None);
        write(temporary.path(), "b.yaml", "kind: D\n");
        assert_eq!(folder.read().unwrap().unwrap().values.len(), 3);
        std::fs::remove_file(temporary.path().join("a.json")).unwrap();
        assert_eq!(folder.read().unwrap().unwrap().values.len(), 1);
    }

    #[test]
    fn a_file_that_no_longer_parses_keeps_what_it_said() {
        let temporary = tempfile::tempdir().unwrap();
        write(temporary.path(), "a.yaml", "kind: A\n");
        let mut folder = Folder::new(temporary.path());
        folder.read().unwrap();
        write(temporary.path(), "a.yaml", "kind: A\n---\nkind: [\n");
        let read = folder.read().unwrap().unwrap();
        assert_eq!(read.values.len(), 1);
        assert!(read.errors[0].starts_with("a.yaml, document 2: "), "{:?}", read.errors);
    }
}
