//! What a packet costs in each program, as a multiple of a program that does nothing.
//!
//! The kernel measures: `BPF_PROG_TEST_RUN` with a repeat count, each round of a case next to one of the empty program,
//! so that a machine that slows down slows down both. The median of the rounds' ratios is printed. Established packets
//! must cost the same whatever the number of policies.

use std::net::{IpAddr, Ipv4Addr};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, ensure};
use netpol_common::abi::{
    AddressKey, CLASS_FIRST, ClassRow, Direction, EndpointOptions, EndpointWord, InterfaceRow, PROTOCOL_ANY,
    PortKeyData, PortRow, RULE_FIRST, RULE_NONE, RuleKey, RuleRow, SET_ALLOW_ALL, SET_FIRST, ServiceKey, ServiceRow,
    Settings, address_kind, interface_flags, mapped, programs, rule_action, stamp,
};
use netpol_policy::compile::MapOp;
use netpol_suites::frames::{ACK, SYN, ipv4, ipv6, tcp};
use netpol_suites::programs::{Arrival, EMPTY, NEXT, Programs, Run, SHOT, program};

const ENDPOINT: u32 = 1;
const POD: [u8; 4] = [10, 244, 0, 5];
const PEER: [u8; 4] = [10, 245, 0, 0];
const POD6: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5];
const PEER6: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 6];
const PORT: u16 = 8080;
/// The device that forwarded packets come in by; anything but 0, which would be the node itself.
const UPLINK: u32 = 2;
/// The pod bridge, another pod of this node, and where its stamp begins in a mark.
const BRIDGE: u32 = 4;
const SENDER: u32 = 2;
const MARK_SHIFT: u32 = 16;
const SERVICE: [u8; 4] = [10, 96, 0, 10];
const FORWARDED: Arrival = Arrival { ingress_ifindex: UPLINK, mark: 0 };
const ROUNDS: usize = 41;
const REPEAT: u32 = 20_000;
/// Packets of a round that are all different. All rounds together stay below the number of ports.
const DISTINCT: usize = 1000;
/// Offset of the source port behind an Ethernet and an IPv4 header.
const SOURCE_PORT: usize = 34;

/// A packet whose cost is measured, and what the programs must say to it.
struct Case {
    name: &'static str,
    program: &'static str,
    arrival: Arrival,
    frame: Vec<u8>,
    /// Sent once before, so that the flow exists.
    before: Vec<(Direction, Vec<u8>)>,
    selected: bool,
    expected: i32,
    repeated: Repeated,
}

/// How the runs of a case differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Repeated {
    /// Not at all: the same packet comes again and again, in a loop of the kernel.
    Same,
    /// Each is of a new copy, because the program changes the packet's mark.
    Afresh,
    /// Each is of another source port, so that it creates a flow.
    Distinct,
}

fn v4(source: [u8; 4], destination: [u8; 4], source_port: u16, port: u16, flags: u8) -> Vec<u8> {
    ipv4(source, destination, 6, 0, &[], &tcp(source_port, port, flags, &[]))
}

fn v6(source: [u8; 16], destination: [u8; 16], source_port: u16, port: u16, flags: u8) -> Vec<u8> {
    ipv6(source, destination, 6, 64, &tcp(source_port, port, flags, &[]))
}

fn cases() -> Vec<Case> {
    use Direction::{Egress, Ingress};
    let connect = || vec![(Ingress, v4(PEER, POD, 4000, PORT, SYN)), (Egress, v4(POD, PEER, PORT, 4000, SYN | ACK))];
    let connect6 =
        || vec![(Ingress, v6(PEER6, POD6, 4000, PORT, SYN)), (Egress, v6(POD6, PEER6, PORT, 4000, SYN | ACK))];
    let case = |name, direction, frame, before, selected, expected| Case {
        name,
        program: program(direction),
        arrival: FORWARDED,
        frame,
        before,
        selected,
        expected,
        repeated: Repeated::Same,
    };
    let distinct = |case| Case { repeated: Repeated::Distinct, ..case };
    let afresh = |case| Case { repeated: Repeated::Afresh, ..case };
    let to_service =
        || vec![(Egress, v4(POD, SERVICE, 4000, 80, SYN)), (Ingress, v4(SERVICE, POD, 80, 4000, SYN | ACK))];
    let from_pod = |state| {
        let mark = stamp::into_mark(0, MARK_SHIFT, stamp::new(state, SENDER));
        Arrival { ingress_ifindex: BRIDGE, mark }
    };
    // What comes before bears the same stamp.
    let stamped = |name, direction, state, frame| Case {
        arrival: from_pod(state),
        ..case(name, direction, frame, connect(), true, NEXT)
    };
    let leaving = |name, state| Case {
        program: programs::HOST_EGRESS,
        arrival: from_pod(state),
        ..case(name, Egress, v4(POD, PEER, 4000, PORT, ACK), Vec::new(), true, NEXT)
    };
    vec![
        case("established, in", Ingress, v4(PEER, POD, 4000, PORT, ACK), connect(), true, NEXT),
        case("established, out", Egress, v4(POD, PEER, PORT, 4000, ACK), connect(), true, NEXT),
        case("established IPv6, in", Ingress, v6(PEER6, POD6, 4000, PORT, ACK), connect6(), true, NEXT),
        distinct(case("new allowed, in", Ingress, v4(PEER, POD, 0, PORT, SYN), Vec::new(), true, NEXT)),
        case("SYN again, in", Ingress, v4(PEER, POD, 4000, PORT, SYN), Vec::new(), true, NEXT),
        case("new denied, in", Ingress, v4(PEER, POD, 4000, PORT + 1, SYN), Vec::new(), true, SHOT),
        case("new denied, out", Egress, v4(POD, PEER, 4000, PORT, SYN), Vec::new(), true, SHOT),
        distinct(case("unselected, new", Ingress, v4(PEER, POD, 0, PORT, SYN), Vec::new(), false, NEXT)),
        case("unselected, established", Ingress, v4(PEER, POD, 4000, PORT, ACK), connect(), false, NEXT),
        case("to a Service, established", Egress, v4(POD, SERVICE, 4000, 80, ACK), to_service(), true, NEXT),
        stamped("judged, established, in", Ingress, stamp::JUDGED, v4(PEER, POD, 4000, PORT, ACK)),
        afresh(stamped("judged, in, afresh", Ingress, stamp::JUDGED, v4(PEER, POD, 4000, PORT, ACK))),
        afresh(stamped("deferred, in, afresh", Ingress, stamp::DEFERRED, v4(PEER, POD, 4000, PORT, ACK))),
        leaving("judged, leaving", stamp::JUDGED),
        afresh(leaving("judged, leaving, afresh", stamp::JUDGED)),
        afresh(leaving("deferred, leaving, afresh", stamp::DEFERRED)),
        Case { arrival: Arrival { ingress_ifindex: 0, mark: 0 }, ..leaving("the host's own, leaving", stamp::JUDGED) },
    ]
}

/// Tables as a compiler fills them for so many policies, each with a class of peers and a port of its own, half of them
/// for the measured pod; and the pod itself.
fn fill(programs: &mut Programs, policies: u32) -> Result<()> {
    programs.set_settings(Settings { mark_shift: MARK_SHIFT, ..Settings::default() })?;
    programs.set_device(BRIDGE, InterfaceRow { endpoint: 0, flags: interface_flags::POD_BRIDGE })?;
    programs.set_interface(InterfaceRow { endpoint: ENDPOINT, flags: interface_flags::POD_VETH })?;
    let mut ops = vec![MapOp::SetOptions { endpoint: ENDPOINT, options: EndpointOptions::default() }];
    for address in [Ipv4Addr::from(POD).to_ipv6_mapped().octets(), POD6] {
        ops.push(MapOp::PutAddress(AddressKey { endpoint: ENDPOINT, address }));
    }
    ops.push(MapOp::SetWord { endpoint: SENDER, word: EndpointWord::new(SET_ALLOW_ALL, 1) });
    let key = ServiceKey { address: mapped(SERVICE), port: 80_u16.to_be_bytes(), protocol: 6, pad: 0 };
    ops.push(MapOp::PutService(key, ServiceRow::default()));
    let pod_class = |class| ClassRow { kind: address_kind::POD, class };
    ops.push(MapOp::PutClass(IpAddr::from(PEER6), pod_class(CLASS_FIRST)));
    for policy in 0..policies {
        let class = CLASS_FIRST + policy;
        let rule = RULE_FIRST + policy;
        // The other half selects other pods of this node.
        let set = if policy % 2 == 0 { SET_FIRST } else { SET_FIRST + 1 + policy / 2 };
        let address = Ipv4Addr::from(u32::from(Ipv4Addr::from(PEER)) + policy);
        ops.push(MapOp::PutClass(IpAddr::V4(address), pod_class(class)));
        let key = |protocol| RuleKey { set, class, direction: Direction::Ingress as u8, protocol, pad: 0 };
        let ports = RuleRow { action: rule_action::PORTS, port_set: rule, rule: RULE_NONE };
        ops.push(MapOp::PutRule(key(6), ports));
        ops.push(MapOp::PutRule(key(PROTOCOL_ANY), RuleRow::default()));
        let port = if policy == 0 { PORT } else { (policy % 50_000) as u16 + 1 };
        let key = PortKeyData { port_set: rule.to_be_bytes(), port: port.to_be_bytes(), pad: [0; 2] };
        ops.push(MapOp::PutPort { prefix_len: 48, key, row: PortRow { action: rule_action::ALLOW, rule } });
    }
    ops.iter().try_for_each(|op| programs.apply(op))
}

/// One line of the table.
struct Measured {
    policies: u32,
    name: &'static str,
    nanoseconds: f64,
    ratio: f64,
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}

fn nanoseconds(duration: Duration) -> f64 {
    // The kernel reports whole nanoseconds; a run that takes none at all would divide by zero.
    duration.as_nanos().max(1) as f64
}

/// Mean time of one run. Packets that differ are run one by one, which finds the caches colder than a loop in the kernel
/// does; the empty program's time, taken the same way, shows by how much.
fn run(programs: &mut Programs, name: &str, case: &Case, expected: i32, round: usize) -> Result<Duration> {
    if case.repeated == Repeated::Same {
        let Run { action: said, time, mark: _ } = programs.run(name, &case.frame, case.arrival, REPEAT)?;
        ensure!(said == expected, "{}: {name} said {said}, expected {expected}", case.name);
        return Ok(time);
    }
    let mut frame = case.frame.clone();
    let mut sum = Duration::ZERO;
    for packet in 0..DISTINCT {
        if case.repeated == Repeated::Distinct {
            let source_port = 1 + (round * DISTINCT + packet) as u16;
            frame[SOURCE_PORT..SOURCE_PORT + 2].copy_from_slice(&source_port.to_be_bytes());
        }
        let Run { action: said, time, mark: _ } = programs.run(name, &frame, case.arrival, 1)?;
        ensure!(said == expected, "{}: {name} said {said}, expected {expected}", case.name);
        sum += time;
    }
    Ok(sum / DISTINCT as u32)
}

fn measure(programs: &mut Programs, policies: u32, case: &Case) -> Result<Measured> {
    programs.forget_flows()?;
    let set = if case.selected { SET_FIRST } else { SET_ALLOW_ALL };
    programs.apply(&MapOp::SetWord { endpoint: ENDPOINT, word: EndpointWord::new(set, 1) })?;
    for (direction, frame) in &case.before {
        let Run { action: said, .. } = programs.run(program(*direction), frame, case.arrival, 1)?;
        ensure!(said == NEXT, "{}: the connection was refused", case.name);
    }
    let (mut times, mut ratios) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let empty = run(programs, EMPTY, case, NEXT, round)?;
        let time = run(programs, case.program, case, case.expected, round)?;
        times.push(nanoseconds(time));
        ratios.push(nanoseconds(time) / nanoseconds(empty));
    }
    Ok(Measured { policies, name: case.name, nanoseconds: median(&mut times), ratio: median(&mut ratios) })
}

fn main() -> Result<ExitCode> {
    let json = match std::env::args().skip(1).collect::<Vec<_>>().as_slice() {
        [] => false,
        [option, format] if option == "--output" && format == "json" => true,
        [option] if option == "--output=json" => true,
        _ => {
            eprintln!("usage: netpol-bench [--output json]");
            return Ok(ExitCode::from(2));
        }
    };
    let mut lines = Vec::new();
    let mut loaded = Vec::new();
    for policies in [1, 10_000] {
        let mut programs = Programs::load(32 * 1024)?;
        fill(&mut programs, policies)?;
        for case in cases() {
            lines.push(measure(&mut programs, policies, &case)?);
        }
        if policies == 1 && !json {
            programs.print_loaded();
        }
        loaded = programs.loaded;
    }
    if json {
        let results: Vec<_> = lines
            .iter()
            .map(|Measured { policies, name, nanoseconds, ratio }| {
                serde_json::json!({"policies": policies, "case": name, "nanoseconds": nanoseconds, "ratio": ratio})
            })
            .collect();
        let programs: Vec<_> = loaded
            .iter()
            .map(|program| {
                serde_json::json!({
                    "name": program.name,
                    "verified_instructions": program.verified_instructions,
                    "translated_bytes": program.translated_bytes,
                    "load_ms": program.time.as_secs_f64() * 1e3,
                })
            })
            .collect();
        println!("{}", serde_json::json!({"schema": 1, "programs": programs, "results": results}));
        return Ok(ExitCode::SUCCESS);
    }
    println!("\n{:>8}  {:<26} {:>8} {:>9}", "policies", "packet", "ns", "× empty");
    for Measured { policies, name, nanoseconds, ratio } in lines {
        println!("{policies:>8}  {name:<26} {nanoseconds:>8.0} {ratio:>9.2}");
    }
    Ok(ExitCode::SUCCESS)
}
