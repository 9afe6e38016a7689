use tempfile::TempDir;

use super::*;

const POLICY: &str = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: db, namespace: shop}\n\
                      spec: {podSelector: {}, policyTypes: [Ingress]}\n";
const NAMESPACE: &str = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n";

struct Fixture {
    directory: TempDir,
    reader: Directory,
}

impl Fixture {
    fn new(files: &[(&str, &str)]) -> Self {
        let directory = tempfile::tempdir().expect("directory");
        let reader = Directory::new(directory.path());
        let fixture = Self { directory, reader };
        for (name, text) in files {
            fixture.write(name, text);
        }
        fixture
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.directory.path().join(name), text).expect("write");
    }

    fn remove(&self, name: &str) {
        fs::remove_file(self.directory.path().join(name)).expect("remove");
    }

    /// What the next reading says, in short; lists only by what they name, and only if it is more than nothing.
    fn read(&mut self) -> Vec<String> {
        self.reader.read().iter().filter_map(short).collect()
    }
}

fn short(event: &Event) -> Option<String> {
    match event {
        Event::Upsert { object, progress } => {
            assert_eq!(*progress, None, "a directory has one version, told by the list");
            Some(format!("{} {}", object.kind(), object.name()))
        }
        Event::Rejected { rejected, origin, .. } => Some(format!("{origin}: {rejected}")),
        Event::Listed { names, .. } if names.is_empty() => None,
        Event::Listed { kind, names, .. } => {
            let names: Vec<String> = names.iter().map(ToString::to_string).collect();
            Some(format!("all {kind}: {}", names.join(" ")))
        }
        Event::Unattributed(all) => {
            let all: Vec<String> = all.iter().map(|(origin, rejected)| format!("{origin}: {rejected}")).collect();
            Some(format!("unattributed [{}]", all.join("; ")))
        }
        Event::Removed { .. } | Event::Bookmark { .. } => panic!("{event:?}"),
    }
}

fn version(events: &[Event]) -> Option<String> {
    let mut versions: Vec<&String> = events
        .iter()
        .filter_map(|event| match event {
            Event::Listed { version, .. } => Some(version),
            _ => None,
        })
        .collect();
    versions.dedup();
    assert!(versions.len() <= 1, "{versions:?}");
    versions.first().map(|version| (*version).clone())
}

#[test]
fn a_directory_is_listed_kind_by_kind() {
    let text = format!("{NAMESPACE}---\n{POLICY}");
    let mut fixture = Fixture::new(&[("a.yaml", &text), ("notes.txt", "kind: Pod")]);
    let events = fixture.reader.read();
    assert_eq!(events.iter().filter(|event| matches!(event, Event::Listed { .. })).count(), Kind::ALL.len());
    assert_eq!(
        events.iter().filter_map(short).collect::<Vec<_>>(),
        ["Namespace shop", "NetworkPolicy shop/db", "all Namespace: shop", "all NetworkPolicy: shop/db",]
    );
}

#[test]
fn an_empty_directory_is_listed_too() {
    let mut fixture = Fixture::new(&[]);
    assert_eq!(fixture.reader.read().len(), Kind::ALL.len());
    assert_eq!(fixture.reader.read(), []);
}

#[test]
fn only_differences_are_told() {
    let mut fixture = Fixture::new(&[("a.yaml", NAMESPACE), ("b.yaml", POLICY)]);
    fixture.read();
    assert_eq!(fixture.read(), Vec::<String>::new());
    fixture.write("b.yaml", &POLICY.replace("{podSelector: {}", "{podSelector: {matchLabels: {app: db}}"));
    assert_eq!(fixture.read(), ["NetworkPolicy shop/db", "all Namespace: shop", "all NetworkPolicy: shop/db"]);
    fixture.remove("b.yaml");
    assert_eq!(fixture.read(), ["all Namespace: shop"]);
}

#[test]
fn the_version_is_the_hash_of_names_and_contents() {
    let mut fixture = Fixture::new(&[("a.yaml", NAMESPACE)]);
    let first = version(&fixture.reader.read()).expect("version");
    let expected = Sha256::digest(format!("a.yaml\0{NAMESPACE}\0"));
    assert_eq!(first, expected.iter().take(8).map(|byte| format!("{byte:02x}")).collect::<String>());
    // A comment changes no object, but whoever wrote it may wait for its version.
    fixture.write("a.yaml", &format!("# a comment\n{NAMESPACE}"));
    let second = version(&fixture.reader.read()).expect("version");
    assert_ne!(first, second);
    fixture.write("a.yaml", NAMESPACE);
    assert_eq!(version(&fixture.reader.read()), Some(first));
}

#[test]
fn a_malformed_object_is_reported_by_file_document_kind_name_and_field() {
    let bad = POLICY.replace("[Ingress]", "[Sideways]");
    let mut fixture = Fixture::new(&[("a.yaml", &format!("{NAMESPACE}---\n{bad}"))]);
    let said = fixture.read();
    assert!(said[1].starts_with("a.yaml, document 2: NetworkPolicy shop/db: spec.policyTypes[0]: "), "{said:?}");
    // It exists: a list that left it out would remove its last good form.
    assert_eq!(said.last().expect("list"), "all NetworkPolicy: shop/db");
}

#[test]
fn what_has_no_name_or_no_kind_is_reported_for_as_long_as_it_is_written() {
    let mut fixture = Fixture::new(&[("a.yaml", "kind: Pod\napiVersion: v1\n"), ("b.yaml", "just: text\n")]);
    let said = fixture.read();
    assert!(said[0].contains("a.yaml, document 1: Pod: metadata.name: "), "{said:?}");
    assert!(said[0].contains("b.yaml, document 1: object: kind: "), "{said:?}");
    fixture.remove("b.yaml");
    fixture.write("a.yaml", NAMESPACE);
    assert_eq!(fixture.read()[0], "unattributed []");
}

#[test]
fn a_file_that_does_not_parse_keeps_saying_what_it_said() {
    let mut fixture = Fixture::new(&[("a.yaml", &format!("{NAMESPACE}---\n{POLICY}"))]);
    fixture.read();
    fixture.write("a.yaml", &format!("{NAMESPACE}---\nkind: [NetworkPol"));
    let said = fixture.read();
    assert!(said[0].starts_with("unattributed [a.yaml, document 2: file: "), "{said:?}");
    assert_eq!(said[1..], ["all Namespace: shop", "all NetworkPolicy: shop/db"]);
    fixture.write("a.yaml", NAMESPACE);
    assert_eq!(fixture.read(), ["unattributed []", "all Namespace: shop"]);
}

#[test]
fn of_a_file_that_never_parsed_the_other_documents_count() {
    let mut fixture = Fixture::new(&[("a.yaml", &format!("kind: [\n---\n{NAMESPACE}"))]);
    let said = fixture.read();
    assert!(said[0].starts_with("unattributed [a.yaml, document 1: file: "), "{said:?}");
    assert_eq!(said[1..], ["Namespace shop", "all Namespace: shop"]);
}

#[test]
fn a_file_that_is_not_text_is_reported_and_the_rest_counts() {
    let mut fixture = Fixture::new(&[("b.yaml", NAMESPACE)]);
    fs::write(fixture.directory.path().join("a.yaml"), [0xff, 0xfe, 0x00]).expect("write");
    let said = fixture.read();
    assert!(said[0].starts_with("unattributed [a.yaml: file: "), "{said:?}");
    assert_eq!(said[1..], ["Namespace shop", "all Namespace: shop"]);
}

#[test]
fn a_namespace_that_nobody_wrote_down_exists() {
    let mut fixture = Fixture::new(&[("a.yaml", POLICY)]);
    assert_eq!(fixture.read()[0], "Namespace shop");
    fixture.write("b.yaml", &NAMESPACE.replace("{name: shop}", "{name: shop, labels: {team: a}}"));
    assert_eq!(fixture.read()[0], "Namespace shop");
    fixture.remove("a.yaml");
    fixture.remove("b.yaml");
    assert_eq!(fixture.read(), Vec::<String>::new());
}

#[test]
fn workloads_and_foreign_kinds_are_ignored() {
    let text = "kind: Deployment\napiVersion: apps/v1\nmetadata: {name: a}\n---\nkind: ConfigMap\napiVersion: v1\n";
    assert_eq!(Fixture::new(&[("a.yaml", text)]).read(), Vec::<String>::new());
}

#[test]
fn of_two_objects_of_one_name_the_last_counts_and_the_first_is_reported() {
    let other = POLICY.replace("[Ingress]", "[Egress]");
    let mut fixture = Fixture::new(&[("a.yaml", POLICY), ("b.yaml", &other)]);
    let events = fixture.reader.read();
    let said: Vec<_> = events.iter().filter_map(short).collect();
    assert_eq!(
        said[0],
        "unattributed [a.yaml, document 1: NetworkPolicy shop/db: metadata.name: is written again in b.yaml, \
         document 1, which counts]"
    );
    let policy = events.iter().find_map(|event| match event {
        Event::Upsert { object: Object::Policy(policy), .. } => Some(policy),
        _ => None,
    });
    assert_eq!(policy.map(|policy| policy.ingress.is_some()), Some(false));
}

#[test]
fn a_directory_that_vanishes_takes_nothing_with_it() {
    let mut fixture = Fixture::new(&[("a.yaml", NAMESPACE)]);
    fixture.read();
    let path = fixture.directory.path().to_owned();
    let aside = path.with_extension("aside");
    fs::rename(&path, &aside).expect("rename");
    let said = fixture.read();
    assert!(matches!(&said[..], [one] if one.contains("No such file")), "{said:?}");
    fs::rename(&aside, &path).expect("rename");
    assert_eq!(fixture.read(), ["unattributed []", "all Namespace: shop"]);
}

#[tokio::test]
async fn a_change_of_the_directory_is_noticed() {
    let fixture = Fixture::new(&[("a.yaml", NAMESPACE)]);
    let (sender, mut events) = mpsc::channel(1);
    let path = fixture.directory.path().to_owned();
    let source = tokio::spawn(run(path, sender, State::new()));
    let mut lists = 0;
    while lists < Kind::ALL.len() {
        let Envelope { event, .. } = events.recv().await.expect("event");
        lists += usize::from(matches!(event, Event::Listed { .. }));
    }
    fixture.write("b.yaml", POLICY);
    let Envelope { event, .. } = events.recv().await.expect("event");
    assert_eq!(short(&event).as_deref(), Some("NetworkPolicy shop/db"));
    drop(events);
    let error = source.await.expect("no panic").expect_err("the consumer is gone");
    assert!(error.to_string().contains("nobody"), "{error}");
}

#[tokio::test]
async fn a_directory_that_is_not_there_is_an_error_that_names_the_flag() {
    let (sender, _events) = mpsc::channel(1);
    let error = run(PathBuf::from("/nowhere/at/all"), sender, State::new()).await.expect_err("missing");
    assert!(format!("{error:#}").contains("--manifests /nowhere/at/all"), "{error:#}");
}
