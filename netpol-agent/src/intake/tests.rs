use netpol_policy::decode::object;
use serde_json::{Value, json};

use super::*;

fn written(kind: Kind, name: &str) -> Value {
    let namespace = if kind.is_namespaced() { json!("shop") } else { Value::Null };
    let mut value = json!({
        "apiVersion": kind.api_version(),
        "kind": kind.name(),
        "metadata": { "name": name, "namespace": namespace },
        "spec": {},
    });
    if kind == Kind::Policy {
        value["spec"] = json!({ "podSelector": { "matchLabels": { "app": name } }, "ingress": [{}] });
    }
    value
}

fn broken(name: &str) -> Value {
    let mut value = written(Kind::Policy, name);
    value["spec"]["ingress"] = json!([{ "from": [{ "ipBlock": { "cidr": "not a block" } }] }]);
    value
}

fn name_of(kind: Kind, name: &str) -> ObjectName {
    ObjectName::new(if kind.is_namespaced() { "shop" } else { "" }, name)
}

/// The event that a watch would make of it.
fn event(value: &Value, progress: Option<&str>) -> Event {
    let progress = progress.map(str::to_owned);
    match object(value) {
        Ok(object) => Event::Upsert { object, progress },
        Err(rejected) => {
            let kind = Kind::ALL.into_iter().find(|kind| kind.name() == rejected.kind).expect("kind");
            Event::Rejected { kind, rejected, origin: Origin::ApiServer, progress }
        }
    }
}

fn listed(kind: Kind, names: &[&str], version: &str) -> Event {
    let names = names.iter().map(|name| name_of(kind, name)).collect();
    Event::Listed { kind, names, version: version.into() }
}

fn removed(kind: Kind, name: &str) -> Event {
    Event::Removed { kind, name: name_of(kind, name), progress: None }
}

fn upsert(value: &Value) -> Change {
    Change::Upsert(object(value).expect("readable"))
}

/// The stand-in for a policy that cannot be read.
fn isolation(value: &Value) -> Change {
    Change::Upsert(Object::Policy(object(value).expect_err("unreadable").isolate.expect("stand-in")))
}

fn remove(kind: Kind, name: &str) -> Change {
    Change::Remove(kind, name_of(kind, name))
}

/// Feeds events one by one, each with the changes it must cause.
#[track_caller]
fn check(steps: Vec<(Event, Vec<Change>)>) -> (Intake, std::sync::Arc<State>) {
    let (mut intake, state) = (Intake::default(), State::new());
    for (number, (event, expected)) in steps.into_iter().enumerate() {
        let description = format!("step {number}: {event:?}");
        assert_eq!(intake.take(event, &state), expected, "{description}");
    }
    for (kind, objects) in &intake.objects {
        let counted = objects.values().filter(|object| object.is_in_force()).count();
        assert_eq!(intake.in_force(*kind), counted, "{kind}");
    }
    (intake, state)
}

fn count_rejected(intake: &Intake) -> usize {
    intake.rejected().map(|(_, count)| count).sum()
}

#[test]
fn what_is_readable_passes_through() {
    for kind in Kind::ALL {
        let value = written(kind, "a");
        check(vec![
            (event(&value, None), vec![upsert(&value)]),
            (event(&value, None), vec![upsert(&value)]),
            (removed(kind, "a"), vec![remove(kind, "a")]),
            (removed(kind, "a"), vec![]),
        ]);
    }
}

#[test]
fn a_policy_that_becomes_unreadable_keeps_its_last_good_form() {
    let (good, bad) = (written(Kind::Policy, "a"), broken("a"));
    let (intake, state) = check(vec![
        (event(&good, None), vec![upsert(&good)]),
        (event(&bad, None), vec![]),
        (event(&bad, None), vec![]),
    ]);
    assert_eq!((count_rejected(&intake), intake.in_force(Kind::Policy)), (1, 1));
    let metrics = state.render().expect("metrics");
    // Once, although it was said twice.
    assert!(metrics.contains("netpol_rejected_objects_total{kind=\"NetworkPolicy\"} 1\n"), "{metrics}");
    assert!(metrics.contains("netpol_policies{mode=\"invalid\"} 1.0\n"), "{metrics}");
}

#[test]
fn a_policy_that_never_was_readable_isolates_until_it_is() {
    let (good, bad) = (written(Kind::Policy, "a"), broken("a"));
    let (intake, state) = check(vec![
        (event(&bad, None), vec![isolation(&bad)]),
        (event(&bad, None), vec![]),
        (event(&good, None), vec![upsert(&good)]),
    ]);
    assert_eq!(count_rejected(&intake), 0);
    let metrics = state.render().expect("metrics");
    assert!(!metrics.contains("netpol_rejected_objects{"), "{metrics}");
}

#[test]
fn a_stand_in_follows_what_can_be_read_of_the_policy() {
    let bad = broken("a");
    let mut wider = broken("a");
    wider["spec"]["podSelector"] = json!({});
    check(vec![
        (event(&bad, None), vec![isolation(&bad)]),
        (event(&wider, None), vec![isolation(&wider)]),
        (removed(Kind::Policy, "a"), vec![remove(Kind::Policy, "a")]),
        (event(&bad, None), vec![isolation(&bad)]),
    ]);
}

#[test]
fn deleting_an_unreadable_object_removes_what_is_in_force_of_it() {
    let (good, bad) = (written(Kind::Policy, "a"), broken("a"));
    let (intake, _) = check(vec![
        (event(&good, None), vec![upsert(&good)]),
        (event(&bad, None), vec![]),
        (removed(Kind::Policy, "a"), vec![remove(Kind::Policy, "a")]),
        // A new policy of that name has no last good form.
        (event(&bad, None), vec![isolation(&bad)]),
    ]);
    assert_eq!(count_rejected(&intake), 1);
}

#[test]
fn an_unreadable_pod_has_nothing_to_stand_in_for_it() {
    let mut bad = written(Kind::Pod, "a");
    bad["metadata"]["labels"] = json!(["not a map"]);
    let (intake, _) = check(vec![
        (event(&bad, None), vec![]),
        (listed(Kind::Pod, &["a"], "1"), vec![]),
        (removed(Kind::Pod, "a"), vec![]),
    ]);
    assert_eq!(count_rejected(&intake), 0);
}

#[test]
fn what_a_list_does_not_name_is_gone() {
    let (a, b, bad) = (written(Kind::Policy, "a"), written(Kind::Policy, "b"), broken("c"));
    let pod = written(Kind::Pod, "a");
    let (intake, _) = check(vec![
        (event(&a, None), vec![upsert(&a)]),
        (event(&b, None), vec![upsert(&b)]),
        (event(&bad, None), vec![isolation(&bad)]),
        (event(&pod, None), vec![upsert(&pod)]),
        (listed(Kind::Policy, &["a", "b", "c"], "5"), vec![]),
        (listed(Kind::Policy, &["b"], "9"), vec![remove(Kind::Policy, "a"), remove(Kind::Policy, "c")]),
    ]);
    assert_eq!(count_rejected(&intake), 0);
    assert_eq!((intake.in_force(Kind::Policy), intake.in_force(Kind::Pod)), (1, 1));
}

#[test]
fn a_version_is_reached_by_a_list_and_by_what_follows_it() {
    let value = written(Kind::Policy, "a");
    let (mut intake, state) = (Intake::default(), State::new());
    let bookmark = |version: &str| Event::Bookmark { kind: Kind::Policy, version: version.into() };
    for (event, version) in [
        // Part of a list: there may be more up to any version.
        (event(&value, None), None),
        (listed(Kind::Policy, &["a"], "5"), Some("5")),
        (event(&value, Some("7")), Some("7")),
        (bookmark("8"), Some("8")),
        (event(&broken("a"), Some("9")), Some("9")),
        (event(&value, None), Some("9")),
        (removed(Kind::Policy, "b"), Some("9")),
    ] {
        let _changes = intake.take(event, &state);
        assert_eq!(intake.versions().get(&Kind::Policy).map(String::as_str), version);
    }
}

#[test]
fn everything_is_listed_when_every_kind_is() {
    let (mut intake, state) = (Intake::default(), State::new());
    for kind in Kind::ALL {
        assert!(!intake.all_listed());
        assert_eq!(intake.take(listed(kind, &[], "1"), &state), []);
    }
    assert!(intake.all_listed());
}

#[test]
fn what_belongs_to_no_object_is_counted_while_it_is_written() {
    let origin = Origin::File { file: "a.yaml".into(), document: Some(2), item: None };
    let nameless = object(&json!({ "kind": "Pod", "apiVersion": "v1" })).expect_err("nameless");
    let (mut intake, state) = (Intake::default(), State::new());
    for _ in 0..2 {
        assert_eq!(intake.take(Event::Unattributed(vec![(origin.clone(), nameless.clone())]), &state), []);
        assert_eq!(count_rejected(&intake), 1);
    }
    assert_eq!(intake.take(Event::Unattributed(vec![]), &state), []);
    assert_eq!(count_rejected(&intake), 0);
    let metrics = state.render().expect("metrics");
    assert!(metrics.contains("netpol_rejected_objects_total{kind=\"Pod\"} 1\n"), "{metrics}");
}
