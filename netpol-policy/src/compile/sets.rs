//! Policy sets: what the policies that select a pod say together, shared by all pods of which that is the same.
//!
//! A [`SetContent`] is built from policies and one pod (whose own ports resolve the named ports of ingress rules) and is
//! known by its digest. A [`PolicySet`] is one that is in use: peers are interned, rules have ids, and it answers for
//! any class. It is never changed; other content is another set.

use std::collections::{BTreeSet, HashMap};

use netpol_common::abi::{Digest, Direction};

use super::answer::{Answer, AnswerBuilder};
use super::atoms::{Atom, AtomId, BlockPeer, Destinations, Member, PodPeer};
use super::classes::ClassContent;
use super::digest::Content;
use crate::model::{ObjectName, Peer, Pod, Policy, PortMatch, PortSpec, Protocol, Rule};

/// Both directions, in the order of their numbers.
pub(super) const DIRECTIONS: [Direction; 2] = [Direction::Ingress, Direction::Egress];

/// Names a rule in explanations and metrics.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RuleName {
    /// The policy.
    pub policy: ObjectName,
    /// Ingress or egress.
    pub direction: Direction,
    /// Index in the policy's list of that direction.
    pub index: usize,
}

impl std::fmt::Display for RuleName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { policy, direction, index } = self;
        let direction = match direction {
            Direction::Ingress => "ingress",
            Direction::Egress => "egress",
        };
        write!(f, "{policy} {direction}[{index}]")
    }
}

impl RuleName {
    pub(super) fn digest(&self) -> Digest {
        let Self { policy, direction, index } = self;
        let mut content = Content::new("rule");
        let _content =
            content.text(&policy.namespace).text(&policy.name).number(*direction as u64).number(*index as u64);
        content.digest()
    }
}

/// What a rule permits to a peer.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Permit {
    /// Every packet.
    Everything,
    /// A protocol's ports, both ends included; all of them, unknown ones too, if there is no range.
    Ports(Protocol, Option<(u16, u16)>),
    /// The port that the class carries beside the atom of a named port.
    Carried(Protocol),
}

/// One peer of a rule and what is permitted to it. `None` is every peer.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Clause<A> {
    /// Index into the set's rules.
    rule: usize,
    peer: Option<A>,
    permits: Vec<Permit>,
}

/// What the policies that select a pod say, before it is interned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SetContent {
    /// Namespace of the pod and of the policies.
    pub(super) namespace: String,
    /// Policies that take part, also those without rules.
    pub(super) policies: BTreeSet<ObjectName>,
    pub(super) rules: Vec<RuleName>,
    /// By [`DIRECTIONS`]; `None`: not isolated.
    clauses: [Option<Vec<Clause<Atom>>>; 2],
}

impl SetContent {
    /// What the policies that select the pod say to it. They come in the order of their names: it decides which of
    /// several rules is named.
    pub(super) fn new<'a>(pod: &Pod, policies: impl IntoIterator<Item = &'a Policy>) -> Self {
        let mut content = Self {
            namespace: pod.name.namespace.clone(),
            policies: BTreeSet::new(),
            rules: Vec::new(),
            clauses: [None, None],
        };
        for policy in policies {
            let Policy { name, selector: _, ingress, egress } = policy;
            let _new = content.policies.insert(name.clone());
            for (direction, rules) in DIRECTIONS.into_iter().zip([ingress, egress]) {
                let Some(rules) = rules else { continue };
                let clauses = content.clauses[direction as usize].get_or_insert_default();
                for rule in rules {
                    let permitted = rule_clauses(content.rules.len(), rule, direction, pod);
                    // A rule that permits nothing makes no difference, and must not be part of what an id stands for.
                    if !permitted.is_empty() {
                        content.rules.push(RuleName { policy: name.clone(), direction, index: rule.index });
                        clauses.extend(permitted);
                    }
                }
            }
        }
        // A broad peer's rule is named first: then a class that no narrower rule gives more to has the answer of class
        // `any`, rule included, and needs no rows of its own.
        for clauses in content.clauses.iter_mut().flatten() {
            clauses.sort_by_key(|clause| clause.peer.as_ref().is_some_and(|atom| !atom.is_broad()));
        }
        content
    }

    /// Whether policies isolate the pod, by [`DIRECTIONS`].
    pub(super) fn isolated(&self) -> [bool; 2] {
        [self.clauses[0].is_some(), self.clauses[1].is_some()]
    }

    /// Whether no packet is permitted in either direction, whoever the peer is.
    pub(super) fn denies_all(&self) -> bool {
        self.clauses.iter().all(|clauses| clauses.as_ref().is_some_and(Vec::is_empty))
    }

    /// What an id stands for: the answers and the names of the rules that make them.
    pub(super) fn digest(&self) -> Digest {
        let Self { namespace, policies: _, rules, clauses } = self;
        let mut content = Content::new("set");
        let _content = content.text(namespace);
        for clauses in clauses {
            let Some(clauses) = clauses else {
                let _content = content.number(0);
                continue;
            };
            let _content = content.number(1).length(clauses.len());
            for Clause { rule, peer, permits } in clauses {
                let _content = content.bytes(&rules[*rule].digest());
                match peer {
                    None => content.number(0),
                    Some(atom) => content.number(1).bytes(&atom.digest()),
                };
                let _content = content.length(permits.len());
                for permit in permits {
                    match permit {
                        Permit::Everything => content.number(0),
                        Permit::Ports(protocol, None) => content.number(1).number(protocol.number().into()),
                        Permit::Ports(protocol, Some((first, last))) => content
                            .number(2)
                            .number(protocol.number().into())
                            .number((*first).into())
                            .number((*last).into()),
                        Permit::Carried(protocol) => content.number(3).number(protocol.number().into()),
                    };
                }
            }
        }
        content.digest()
    }

    /// All peers that are named.
    pub(super) fn atoms(&self) -> impl Iterator<Item = &Atom> {
        self.clauses.iter().flatten().flatten().filter_map(|clause| clause.peer.as_ref())
    }

    /// Interns it: `atom` gives the id of a peer, if it has one; a peer without one is in no class. `rule` gives the id
    /// of a rule by its position.
    pub(super) fn resolve(
        &self,
        mut atom: impl FnMut(&Atom) -> Option<AtomId>,
        rule: impl Fn(usize) -> u32,
    ) -> PolicySet {
        let mut broad = BTreeSet::new();
        let directions = self.clauses.each_ref().map(|clauses| {
            let clauses = clauses.as_ref()?;
            let mut rules = DirectionRules::default();
            for (rank, Clause { rule: position, peer, permits }) in clauses.iter().enumerate() {
                rules.permits.push((rule(*position), permits.clone()));
                match peer {
                    None => rules.every_peer.push(rank),
                    Some(peer) => {
                        let Some(id) = atom(peer) else { continue };
                        rules.by_atom.entry(id).or_default().push(rank);
                        if peer.is_broad() {
                            let _new = broad.insert(Member::of(id));
                        }
                    }
                }
            }
            Some(rules)
        });
        let broad = ClassContent::of_members(broad);
        let any = DIRECTIONS.map(|direction| answer(&directions, direction, &broad));
        PolicySet { directions, broad, any }
    }
}

fn rule_clauses(position: usize, rule: &Rule, direction: Direction, pod: &Pod) -> Vec<Clause<Atom>> {
    let Rule { index: _, peers, ports } = rule;
    let mut plain = Vec::new();
    let mut named = Vec::new();
    match ports {
        None => plain.push(Permit::Everything),
        Some(ports) => {
            for PortMatch { protocol, ports } in ports {
                match (ports, direction) {
                    (PortSpec::All, _) => plain.push(Permit::Ports(*protocol, None)),
                    (PortSpec::Range(first, last), _) => plain.push(Permit::Ports(*protocol, Some((*first, *last)))),
                    // The destination is the pod itself (semantics P1).
                    (PortSpec::Named(name), Direction::Ingress) => {
                        let declared = pod.ports.iter();
                        let declared = declared
                            .filter(|port| port.protocol == *protocol && port.name.as_deref() == Some(name.as_str()));
                        plain.extend(declared.map(|port| Permit::Ports(*protocol, Some((port.port, port.port)))));
                    }
                    (PortSpec::Named(name), Direction::Egress) => named.push((name.clone(), *protocol)),
                }
            }
        }
    }
    plain.sort_unstable();
    plain.dedup();
    named.sort_unstable();
    named.dedup();

    let mut clauses = Vec::new();
    let mut permit = |peer: Option<Atom>, among: Destinations| {
        if !plain.is_empty() {
            clauses.push(Clause { rule: position, peer, permits: plain.clone() });
        }
        for (name, protocol) in &named {
            let atom = Atom::NamedPort { among: among.clone(), name: name.clone(), protocol: *protocol };
            clauses.push(Clause { rule: position, peer: Some(atom), permits: vec![Permit::Carried(*protocol)] });
        }
    };
    match peers {
        None => permit(None, Destinations::EveryPod),
        Some(peers) => {
            for peer in peers {
                match peer {
                    Peer::Pods { namespaces, pods } => {
                        let peer = PodPeer { namespaces: namespaces.clone(), pods: pods.clone() };
                        permit(Some(Atom::Pods(peer.clone())), Destinations::Pods(peer));
                    }
                    Peer::Block { cidr, except } => {
                        let block =
                            BlockPeer { cidr: cidr.trunc(), except: except.iter().map(ipnet::IpNet::trunc).collect() };
                        permit(Some(Atom::Block(block.clone())), Destinations::Block(block));
                    }
                    Peer::Nothing => {}
                }
            }
        }
    }
    clauses
}

/// The rules of one direction, ready to answer.
#[derive(Clone, Debug, Default)]
struct DirectionRules {
    /// Rule id and what it permits, by rank.
    permits: Vec<(u32, Vec<Permit>)>,
    /// Ranks of clauses for every peer.
    every_peer: Vec<usize>,
    /// Ranks of clauses by peer.
    by_atom: HashMap<AtomId, Vec<usize>>,
}

/// A policy set that can answer.
#[derive(Clone, Debug)]
pub(super) struct PolicySet {
    directions: [Option<DirectionRules>; 2],
    broad: ClassContent,
    any: [Answer; 2],
}

impl PolicySet {
    /// The answer for a class.
    pub(super) fn answer(&self, direction: Direction, class: &ClassContent) -> Answer {
        answer(&self.directions, direction, class)
    }

    /// The answer of the row for class `any`: that of the broad peers.
    pub(super) fn any(&self, direction: Direction) -> &Answer {
        &self.any[direction as usize]
    }

    /// Whether classes outside of all its peers may need rows of their own, because a broad peer permits something.
    pub(super) fn is_broad(&self) -> bool {
        !self.broad.is_empty()
    }
}

fn answer(directions: &[Option<DirectionRules>; 2], direction: Direction, class: &ClassContent) -> Answer {
    let Some(rules) = &directions[direction as usize] else { return Answer::not_isolated() };
    let one = |members: &[Member]| {
        let mut builder = AnswerBuilder::default();
        let none = Vec::new();
        let carried = members.iter().flat_map(|Member { atom, port }| {
            rules.by_atom.get(atom).unwrap_or(&none).iter().map(|rank| (*rank, *port))
        });
        for (rank, port) in rules.every_peer.iter().map(|rank| (*rank, 0)).chain(carried) {
            let (rule, permits) = &rules.permits[rank];
            for permit in permits {
                match permit {
                    Permit::Everything => builder.permit_any(rank, *rule),
                    Permit::Ports(protocol, None) => builder.permit_protocol(rank, *rule, *protocol),
                    Permit::Ports(protocol, Some((first, last))) => {
                        builder.permit_ports(rank, *rule, *protocol, *first, *last);
                    }
                    Permit::Carried(protocol) => builder.permit_ports(rank, *rule, *protocol, port, port),
                }
            }
        }
        builder.finish()
    };
    let mut alternatives = class.alternatives().map(one);
    let first = alternatives.next().unwrap_or_default();
    alternatives.fold(first, |all, next| all.and(&next))
}
