//! The connectivity matrix on a terminal: a row for each port that can be reached, a column for each source.
//!
//! Replicas that nobody can tell apart, as source and as destination, share a row and a column, so that sixty pods are
//! as readable as ten. Two ends are told apart by colour refinement, as in testing graphs for isomorphism: ends of one
//! workload begin with one colour, and those that reach, or are reached from, another set of colours get another one.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use netpol_testbed::probe::Outcome;
use netpol_testbed::sandbox::Answered;
use netpol_testbed::sandbox::cells::{End, Port};

/// What is printed of a cell, of both families together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Mark {
    Allowed,
    Denied,
    /// Allowed over IPv4, denied over IPv6.
    OnlyIpv4,
    OnlyIpv6,
    /// Not what the policies say.
    Differs,
}

impl Mark {
    const fn sign(self) -> char {
        match self {
            Self::Allowed => '■',
            Self::Denied => '·',
            Self::OnlyIpv4 => '4',
            Self::OnlyIpv6 => '6',
            Self::Differs => '!',
        }
    }
}

/// Width of the column of ports.
const PORTS: usize = 28;

/// Of pairs that are not all alike.
const MIXED: char = '~';

const LEGEND: &str =
    "  ■ allowed   · denied   4 6 allowed in this family alone   ~ some pairs   ! not what the policies say";

type Marks<'a> = BTreeMap<(&'a End, &'a End), BTreeMap<Port, Mark>>;

/// Draws the matrix.
pub(super) fn draw(cells: &[Answered]) -> String {
    let marks = marks(cells);
    let groups = groups(&marks);
    let mut text = String::new();
    let number = groups.len();
    let mut line = |line: String| {
        text.push_str(line.trim_end());
        text.push('\n');
    };
    line("from".to_owned());
    let mut section = String::new();
    for (index, group) in groups.iter().enumerate() {
        let heading = group.section();
        let shown = if section == heading { "" } else { &heading };
        line(format!("  {:>3}  {shown:<18} {}", index + 1, group.label()));
        section = heading;
    }

    let name_width = groups.iter().map(|group| group.label().chars().count()).max().unwrap_or(0) + 4;
    let indent = name_width + PORTS;
    line(String::new());
    line(format!("to{}from", " ".repeat(indent.saturating_sub(2))));
    for digit in (0..3).rev() {
        let power = 10_usize.pow(digit);
        if number >= power {
            let digits = (1..=number).map(|index| {
                let is_shown = index >= power;
                if is_shown { char::from_digit((index / power % 10) as u32, 10).unwrap_or(' ') } else { ' ' }
            });
            line(format!("{}{}", " ".repeat(indent), spaced(digits, &groups)));
        }
    }
    let mut section = String::new();
    for to in &groups {
        // Ports that the same sources reach share a row.
        let ports: BTreeSet<Port> = groups.iter().flat_map(|from| ports(&marks, from, to)).collect();
        let mut rows = Vec::<(Vec<char>, Vec<Port>)>::new();
        for port in ports {
            let signs: Vec<char> = groups.iter().map(|from| sign(&marks, from, to, port)).collect();
            match rows.iter_mut().find(|(others, _)| *others == signs) {
                Some((_, ports)) => ports.push(port),
                None => rows.push((signs, vec![port])),
            }
        }
        for (index, (signs, ports)) in rows.into_iter().enumerate() {
            if section != to.section() {
                section = to.section();
                line(format!("{section}:"));
            }
            let label = if index == 0 { to.label() } else { String::new() };
            let signs = spaced(signs.into_iter(), &groups);
            let mut ports = listed(&ports).into_iter();
            let first = ports.next().unwrap_or_default();
            line(format!("  {label:<width$}{first:<PORTS$}{signs}", width = name_width - 2));
            ports.for_each(|more| line(format!("{:name_width$}{more}", "")));
        }
    }
    line(String::new());
    line(LEGEND.to_owned());
    text
}

/// Ports as lines of at most [`PORTS`] characters, with a gap: "TCP 53 443", "UDP 53".
fn listed(ports: &[Port]) -> Vec<String> {
    let mut lines = Vec::<String>::new();
    let mut last = None;
    for Port { protocol, number } in ports {
        let number = number.to_string();
        match lines.last_mut() {
            Some(line) if last == Some(protocol) && line.len() + number.len() + 2 < PORTS => {
                line.push(' ');
                line.push_str(&number);
            }
            Some(_) if last == Some(protocol) => lines.push(format!("    {number}")),
            Some(_) | None => lines.push(format!("{} {number}", protocol.name())),
        }
        last = Some(protocol);
    }
    lines
}

/// A gap where a namespace ends.
fn spaced(signs: impl Iterator<Item = char>, groups: &[Group<'_>]) -> String {
    let mut text = String::new();
    let mut section = None;
    for (sign, group) in signs.zip(groups) {
        let own = group.section();
        if section.as_ref().is_some_and(|section| *section != own) {
            text.push(' ');
        }
        text.push(sign);
        section = Some(own);
    }
    text
}

/// One row and one column.
struct Group<'a> {
    members: Vec<&'a End>,
}

impl Group<'_> {
    fn section(&self) -> String {
        match self.members.first() {
            Some(End::Pod(name)) => name.namespace.clone(),
            Some(End::Host(_)) | None => "outside".to_owned(),
        }
    }

    fn label(&self) -> String {
        let short = |end: &End| match end {
            End::Pod(name) => name.name.clone(),
            End::Host(address) => address.to_string(),
        };
        match &self.members[..] {
            [] => String::new(),
            [only] => short(only),
            [End::Host(first), .., End::Host(last)] if self.members.len() > 2 => {
                format!("{first} … {last} ({})", self.members.len())
            }
            [End::Host(one), End::Host(other)] => format!("{one}, {other}"),
            [first, .., last] => {
                let (base, _) = workload(first);
                let mut ordinals: Vec<usize> = self.members.iter().filter_map(|end| workload(end).1).collect();
                ordinals.sort_unstable();
                match (ordinals.first(), ordinals.last()) {
                    (Some(low), Some(high))
                        if ordinals.len() == self.members.len() && high - low + 1 == ordinals.len() =>
                    {
                        format!("{base}-{low}…{high}")
                    }
                    _ => format!("{} … {} ({})", short(first), short(last), self.members.len()),
                }
            }
        }
    }
}

/// Name without its number, and the number.
fn workload(end: &End) -> (String, Option<usize>) {
    match end {
        End::Host(address) => (address.to_string(), None),
        End::Pod(name) => match name.name.rsplit_once('-') {
            Some((base, ordinal)) => match ordinal.parse() {
                Ok(ordinal) => (base.to_owned(), Some(ordinal)),
                Err(_no_number) => (name.name.clone(), None),
            },
            None => (name.name.clone(), None),
        },
    }
}

fn marks(cells: &[Answered]) -> Marks<'_> {
    let mut families = BTreeMap::<(&End, &End, Port), (Vec<&Answered>, Vec<&Answered>)>::new();
    for answered in cells {
        let cell = &answered.cell;
        let (ipv4, ipv6) = families.entry((&cell.from, &cell.to, cell.port)).or_default();
        if cell.destination.is_ipv4() { ipv4.push(answered) } else { ipv6.push(answered) }
    }
    let mut marks = Marks::new();
    for ((from, to, port), (ipv4, ipv6)) in families {
        let is_allowed = |answered: &[&Answered]| {
            (!answered.is_empty()).then(|| answered.iter().all(|answered| answered.observed == Outcome::Allow))
        };
        let mark = if ipv4.iter().chain(&ipv6).any(|answered| !answered.agrees()) {
            Mark::Differs
        } else {
            match (is_allowed(&ipv4), is_allowed(&ipv6)) {
                (Some(true), Some(true) | None) | (None, Some(true)) => Mark::Allowed,
                (Some(true), Some(false)) => Mark::OnlyIpv4,
                (Some(false), Some(true)) => Mark::OnlyIpv6,
                (Some(false) | None, Some(false) | None) => Mark::Denied,
            }
        };
        marks.entry((from, to)).or_default().insert(port, mark);
    }
    marks
}

fn groups<'a>(marks: &Marks<'a>) -> Vec<Group<'a>> {
    let ends: BTreeSet<&End> = marks.keys().flat_map(|(from, to)| [*from, *to]).collect();
    let none = BTreeMap::new();
    let between = |from: &'a End, to: &'a End| marks.get(&(from, to)).unwrap_or(&none);
    // Ports are part of the first colour by way of the pod's cell with itself.
    let first = ends.iter().map(|end| {
        let kind = match end {
            End::Pod(name) => (name.namespace.clone(), workload(end).0),
            End::Host(address) => (String::new(), if address.is_ipv4() { "IPv4" } else { "IPv6" }.to_owned()),
        };
        (*end, (kind, between(end, end).keys().copied().collect::<Vec<_>>()))
    });
    let mut colours = numbered(first.collect());
    loop {
        let signature = |end: &'a End| {
            let others = ends.iter().filter(|other| **other != end);
            let seen: BTreeSet<_> =
                others.map(|other| (colours.get(other), between(end, other), between(other, end))).collect();
            (colours.get(end), seen)
        };
        let refined = numbered(ends.iter().map(|end| (*end, signature(end))).collect());
        let count = |colours: &BTreeMap<&End, usize>| colours.values().max().copied();
        if count(&refined) == count(&colours) {
            break;
        }
        colours = refined;
    }
    let mut members = BTreeMap::<usize, Vec<&'a End>>::new();
    for (end, colour) in &colours {
        members.entry(*colour).or_default().push(end);
    }
    let mut groups: Vec<Group<'a>> = members.into_values().map(|members| Group { members }).collect();
    groups.sort_by(|one, other| one.members.cmp(&other.members));
    groups
}

/// Equal things get equal numbers.
fn numbered<T: Ord>(things: BTreeMap<&End, T>) -> BTreeMap<&End, usize> {
    let distinct: BTreeSet<&T> = things.values().collect();
    let numbers: BTreeMap<&T, usize> = distinct.into_iter().zip(0..).collect();
    things.iter().filter_map(|(end, thing)| Some((*end, *numbers.get(thing)?))).collect()
}

fn pairs<'g, 'a>(from: &'g Group<'a>, to: &'g Group<'a>) -> impl Iterator<Item = (&'a End, &'a End)> + use<'g, 'a> {
    let is_alone = from.members.len() == 1;
    let all = from.members.iter().flat_map(|from| to.members.iter().map(|to| (*from, *to)));
    // A pod reaches itself in any case; among replicas that says nothing of the others.
    all.filter(move |(from, to)| is_alone || from != to)
}

fn ports(marks: &Marks<'_>, from: &Group<'_>, to: &Group<'_>) -> BTreeSet<Port> {
    pairs(from, to).filter_map(|pair| marks.get(&pair)).flat_map(|ports| ports.keys().copied()).collect()
}

fn sign(marks: &Marks<'_>, from: &Group<'_>, to: &Group<'_>, port: Port) -> char {
    let of_pair = |pair| marks.get(&pair).and_then(|ports| ports.get(&port)).copied();
    let all: BTreeSet<Option<Mark>> = pairs(from, to).map(of_pair).collect();
    let mut all = all.into_iter();
    match (all.next(), all.next()) {
        (Some(Some(mark)), None) => mark.sign(),
        (None | Some(None), None) => ' ',
        (_, Some(_)) => MIXED,
    }
}

/// The cells that are not as the policies say, one a line.
pub(super) fn differences(cells: &[Answered]) -> String {
    let mut text = String::new();
    for answered in cells.iter().filter(|answered| !answered.agrees()) {
        let cell = &answered.cell;
        let expected = if answered.expected { "allow" } else { "deny" };
        // Writing to a String does not fail.
        let _ = writeln!(
            text,
            "  {} -> {} ({}, {}): the policies say {expected}, observed {}",
            cell.from,
            cell.to,
            cell.destination,
            cell.port,
            observed(&answered.observed)
        );
    }
    text
}

/// The word for an outcome, with the reason of an error.
pub(super) fn observed(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Allow => "allow".to_owned(),
        Outcome::Deny => "deny".to_owned(),
        Outcome::Error(message) => format!("error ({message})"),
    }
}

#[cfg(test)]
mod tests {
    use netpol_policy::model::{ObjectName, Protocol};
    use netpol_testbed::sandbox::cells::Cell;

    use super::*;

    fn answered(from: &str, to: &str, family: u8, expected: bool, observed: Outcome) -> Answered {
        let end = |name: &str| match name.parse() {
            Ok(address) => End::Host(address),
            Err(_no_address) => End::Pod(ObjectName::new("shop", name)),
        };
        let address = if family == 4 { "10.0.0.1" } else { "fd00::1" }.parse().unwrap();
        let port = Port { protocol: Protocol::Tcp, number: 80 };
        let cell = Cell { from: end(from), to: end(to), source: address, destination: address, port };
        Answered { cell, expected, observed }
    }

    fn allowed(from: &str, to: &str) -> Answered {
        answered(from, to, 4, true, Outcome::Allow)
    }

    fn denied(from: &str, to: &str) -> Answered {
        answered(from, to, 4, false, Outcome::Deny)
    }

    fn labels(cells: &[Answered]) -> Vec<String> {
        groups(&marks(cells)).iter().map(Group::label).collect()
    }

    #[test]
    fn replicas_that_nobody_can_tell_apart_share_a_row_and_a_column() {
        let mut cells = Vec::new();
        for replica in ["web-0", "web-1", "web-2"] {
            cells.extend([allowed(replica, "db"), denied("db", replica)]);
            cells.extend(["web-0", "web-1", "web-2"].map(|other| allowed(replica, other)));
        }
        assert_eq!(labels(&cells), ["db", "web-0…2"]);
        cells.retain(|answered| answered.cell != denied("db", "web-1").cell);
        cells.push(answered("db", "web-1", 4, false, Outcome::Allow));
        assert_eq!(labels(&cells), ["db", "web-0 … web-2 (2)", "web-1"]);
    }

    #[test]
    fn families_share_a_cell() {
        let sign_of = |cells: &[Answered]| marks(cells).values().next().unwrap().values().next().unwrap().sign();
        let v6 = |expected, observed| answered("a", "b", 6, expected, observed);
        assert_eq!(sign_of(&[allowed("a", "b")]), '■');
        assert_eq!(sign_of(&[allowed("a", "b"), v6(true, Outcome::Allow)]), '■');
        assert_eq!(sign_of(&[allowed("a", "b"), v6(false, Outcome::Deny)]), '4');
        assert_eq!(sign_of(&[denied("a", "b"), v6(true, Outcome::Allow)]), '6');
        assert_eq!(sign_of(&[denied("a", "b"), v6(false, Outcome::Deny)]), '·');
        assert_eq!(sign_of(&[allowed("a", "b"), v6(false, Outcome::Error("refused".into()))]), '!');
    }

    #[test]
    fn the_drawing_has_a_row_for_each_port_and_a_column_for_each_source() {
        let cells = [allowed("a", "b"), denied("203.0.113.1", "b"), allowed("a", "203.0.113.1")];
        let drawing = draw(&cells);
        let rows: Vec<&str> = drawing.lines().filter(|line| line.contains("TCP 80")).collect();
        assert_eq!(rows.len(), 2, "{drawing}");
        assert!(rows[0].trim_start().starts_with("b ") && rows[0].ends_with("■  ·"), "{drawing}");
        assert!(rows[1].trim_start().starts_with("203.0.113.1 ") && rows[1].ends_with("■"), "{drawing}");
        assert!(drawing.contains("  1  shop"), "{drawing}");
    }

    #[test]
    fn only_cells_that_differ_are_listed() {
        let cells = [allowed("a", "b"), answered("b", "a", 4, true, Outcome::Deny)];
        let differences = differences(&cells);
        assert_eq!(differences.lines().count(), 1);
        assert!(differences.contains("shop/b -> shop/a (10.0.0.1, TCP 80): the policies say allow, observed deny"));
    }
}
