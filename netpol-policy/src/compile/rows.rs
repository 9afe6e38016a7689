//! Verdict rows of {set, class} pairs, and the port sets and rule ids that they refer to.

use std::sync::Arc;

use netpol_common::abi::{
    CLASS_ANY, CLASS_NONE, Digest, DigestKey, Direction, PROTOCOL_ANY, RULE_NONE, RuleKey, RuleRow, id_kind,
    rule_action,
};

use super::answer::{Answer, Grant, PROTOCOLS, Span};
use super::classes::ClassContent;
use super::digest::Content;
use super::ports::{self, PortSet};
use super::quotas::Counted;
use super::sets::{DIRECTIONS, RuleName};
use super::{Compiler, SetEntry};

/// Something does not fit into this map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Full(pub(super) Counted);

/// Every key that a set can have for a class.
pub(super) fn keys(set: u32, class: u32) -> impl Iterator<Item = RuleKey> {
    DIRECTIONS.into_iter().flat_map(move |direction| {
        let protocols = PROTOCOLS.into_iter().map(crate::model::Protocol::number).chain([PROTOCOL_ANY]);
        protocols.map(move |protocol| RuleKey { set, class, direction: direction as u8, protocol, pad: 0 })
    })
}

impl Compiler {
    /// Writes the rows of a set for a class, if its answer is not that of class `any`.
    pub(super) fn write_rows(&mut self, set: u32, class: u32) -> Result<(), Full> {
        let (Some(entry), Some(class_entry)) = (self.sets.get(&set), self.classes.get(class)) else { return Ok(()) };
        let content = Arc::clone(&class_entry.content);
        let Some(policy_set) = entry.known.clone() else {
            if self.copy_rows(set, class, &content) {
                self.note_rows(set, class);
            }
            return Ok(());
        };
        for direction in DIRECTIONS {
            let answer = policy_set.answer(direction, &content);
            if answer != *policy_set.any(direction) {
                self.note_rows(set, class);
                self.write_answer(set, class, direction, &answer)?;
            }
        }
        Ok(())
    }

    fn note_rows(&mut self, set: u32, class: u32) {
        if let Some(entry) = self.sets.get_mut(&set) {
            let _new = entry.classes.insert(class);
        }
        if let Some(entry) = self.classes.get_mut(class) {
            let _new = entry.sets.insert(set);
        }
    }

    /// The rows of a set that an earlier agent wrote, for a class that stands in for one of its classes.
    fn copy_rows(&mut self, set: u32, class: u32, content: &ClassContent) -> bool {
        let source = self.inherited.class_of(&self.atoms, content);
        let mut wrote = false;
        for (from, to) in keys(set, source).zip(keys(set, class)) {
            if let Some(row) = self.tables.rules.get(&from) {
                self.tables.put_rule(to, row, "");
                wrote = true;
            }
        }
        wrote
    }

    /// Writes the rows of class `any`.
    pub(super) fn write_any(&mut self, set: u32) -> Result<(), Full> {
        let Some(policy_set) = self.sets.get(&set).and_then(|entry| entry.known.clone()) else { return Ok(()) };
        for direction in DIRECTIONS {
            let answer = policy_set.any(direction);
            // No row at all is a denial.
            if !answer.is_denial() {
                self.write_answer(set, CLASS_ANY, direction, answer)?;
            }
        }
        Ok(())
    }

    fn write_answer(&mut self, set: u32, class: u32, direction: Direction, answer: &Answer) -> Result<(), Full> {
        let namespace = self.sets.get(&set).map(|entry| entry.namespace.clone()).unwrap_or_default();
        for (protocol, grant) in answer.rows() {
            let row = match grant {
                Grant::None => RuleRow { action: rule_action::DENY, port_set: 0, rule: RULE_NONE },
                Grant::All(rule) => RuleRow { action: rule_action::ALLOW, port_set: 0, rule },
                Grant::Ports(spans) => {
                    let port_set = self.refer_port_set(&spans, &namespace)?;
                    RuleRow { action: rule_action::PORTS, port_set, rule: RULE_NONE }
                }
            };
            let key = RuleKey { set, class, direction: direction as u8, protocol, pad: 0 };
            self.tables.put_rule(key, row, &namespace);
        }
        Ok(())
    }

    /// Removes all rows of a set for a class; nothing may refer to one of the two.
    pub(super) fn remove_rows(&mut self, set: u32, class: u32) {
        let (namespace, known) =
            self.sets.get(&set).map(|entry| (entry.namespace.clone(), entry.known.is_some())).unwrap_or_default();
        for key in keys(set, class) {
            if let Some(RuleRow { action, port_set, .. }) = self.tables.remove_rule(key, &namespace)
                && action == rule_action::PORTS
                && known
            {
                self.forget_port_set(port_set);
            }
        }
        if let Some(entry) = self.sets.get_mut(&set) {
            let _was = entry.classes.remove(&class);
        }
        if let Some(entry) = self.classes.get_mut(class) {
            let _was = entry.sets.remove(&set);
        }
    }

    fn port_set_digest(&self, spans: &[Span]) -> Digest {
        let mut content = Content::new("ports");
        let _content = content.length(spans.len());
        for Span { first, last, rule } in spans {
            let rule = self.ids.digest(id_kind::RULE, *rule).unwrap_or_default();
            let _content = content.number((*first).into()).number((*last).into()).bytes(&rule);
        }
        content.digest()
    }

    fn refer_port_set(&mut self, spans: &[Span], namespace: &str) -> Result<u32, Full> {
        let digest = self.port_set_digest(spans);
        let id = self.ids.get(id_kind::PORT_SET, digest, self.now_ms).ok_or(Full(Counted::Digests))?;
        if !self.port_sets.contains_key(&id) {
            self.tables.put_digest(DigestKey { kind: id_kind::PORT_SET, id }, digest, namespace);
            let mut keys = Vec::new();
            for (key, row) in ports::rows(id, spans) {
                self.tables.put_port(key, row, namespace);
                keys.push(key);
            }
            let port_set = PortSet { references: 0, namespace: namespace.to_owned(), keys };
            let _none = self.port_sets.insert(id, port_set);
        }
        if let Some(port_set) = self.port_sets.get_mut(&id) {
            port_set.references += 1;
        }
        Ok(id)
    }

    fn forget_port_set(&mut self, id: u32) {
        let Some(port_set) = self.port_sets.get_mut(&id) else { return };
        port_set.references -= 1;
        // Only rows that no program can reach any more are removed, so nothing can reach the port set either.
        if port_set.references == 0
            && let Some(PortSet { namespace, keys, .. }) = self.port_sets.remove(&id)
        {
            for key in keys {
                self.tables.remove_port(key, &namespace);
            }
            self.release(id_kind::PORT_SET, id, &namespace);
        }
    }

    /// An id stands for nothing any more. One of an earlier agent keeps its meaning until the sweep.
    pub(super) fn release(&mut self, kind: u32, id: u32, namespace: &str) {
        if self.tables.remove_digest(DigestKey { kind, id }, namespace) {
            self.ids.release(kind, id, self.now_ms);
        }
    }

    /// The id of a rule, for one more set that holds it.
    pub(super) fn refer_rule(&mut self, name: &RuleName) -> Result<u32, Full> {
        let digest = name.digest();
        let id = self.ids.get(id_kind::RULE, digest, self.now_ms).ok_or(Full(Counted::Digests))?;
        let (_, references) = self.rules.entry(id).or_insert_with(|| (name.clone(), 0));
        *references += 1;
        if *references == 1 {
            self.tables.put_digest(DigestKey { kind: id_kind::RULE, id }, digest, &name.policy.namespace);
        }
        Ok(id)
    }

    pub(super) fn forget_rule(&mut self, id: u32) {
        let Some((name, references)) = self.rules.get_mut(&id) else { return };
        *references -= 1;
        if *references == 0 {
            let namespace = name.policy.namespace.clone();
            let _rule = self.rules.remove(&id);
            self.release(id_kind::RULE, id, &namespace);
        }
    }

    /// Sets whose answer for a class may differ from their answer for class `any`.
    pub(super) fn sets_for(&self, content: &ClassContent) -> std::collections::BTreeSet<u32> {
        let mut sets = self.broad_sets.clone();
        for atom in content.atoms() {
            if let Some(entry) = self.atoms.get(atom) {
                sets.extend(&entry.sets);
            }
        }
        sets
    }

    /// Classes for which a set's answer may differ from its answer for class `any`.
    pub(super) fn classes_for(&self, set: &SetEntry) -> std::collections::BTreeSet<u32> {
        if set.known.as_ref().is_none_or(|known| known.is_broad()) {
            return self.classes.ids().collect();
        }
        let mut classes = std::collections::BTreeSet::from([CLASS_NONE]);
        for atom in &set.atoms {
            if let Some(entry) = self.atoms.get(*atom) {
                classes.extend(&entry.classes);
            }
        }
        classes
    }

    /// What a set answers to a class, from its rows: also where only the rows are known. By direction and protocol,
    /// the row that decides.
    pub(super) fn effective_rows(&self, set: u32, class: u32) -> Vec<Option<RuleRow>> {
        let has_own = |direction: Direction| {
            let key = RuleKey { set, class, direction: direction as u8, protocol: PROTOCOL_ANY, pad: 0 };
            self.tables.rules.get(&key).is_some()
        };
        let mut rows = Vec::new();
        for direction in DIRECTIONS {
            let from = if has_own(direction) { class } else { CLASS_ANY };
            let row = |protocol: u8| {
                let key = RuleKey { set, class: from, direction: direction as u8, protocol, pad: 0 };
                self.tables.rules.get(&key)
            };
            let any = row(PROTOCOL_ANY);
            for protocol in PROTOCOLS {
                rows.push(row(protocol.number()).or(any).map(without_rule));
            }
            rows.push(any.map(without_rule));
        }
        // A missing row denies like one that says so.
        rows.into_iter().map(|row| row.filter(|row| row.action != rule_action::DENY)).collect()
    }
}

fn without_rule(row: RuleRow) -> RuleRow {
    RuleRow { rule: RULE_NONE, ..row }
}
