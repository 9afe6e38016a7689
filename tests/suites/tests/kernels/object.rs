//! The object of the programs, as bytes: what old kernels would refuse, and what is changed for them in tests.

use netpol_agent::dataplane::object::OBJECT;
use netpol_suites::kernel::stack::{self, LIMIT};
use netpol_suites::kernel::test_run::{INGRESS_IFINDEX, PRIORITY, SECTION, ingress_in_priority};

#[test]
fn the_deepest_calls_of_each_program_fit_the_oldest_kernels_stack() {
    let chains = stack::deepest(OBJECT, SECTION).expect("chains");
    assert!(chains.len() >= 4, "{chains:?}");
    for chain in chains {
        println!("{} bytes: {:?}", chain.bytes, chain.functions);
        assert!(chain.bytes <= LIMIT, "{} bytes: {:#?}", chain.bytes, chain.functions);
    }
}

#[test]
fn nothing_but_the_offset_of_a_load_is_changed_for_test_runs() {
    let changed = ingress_in_priority(OBJECT).expect("an object");
    assert_eq!(changed.len(), OBJECT.len());
    let differences: Vec<usize> = (0..OBJECT.len()).filter(|at| OBJECT[*at] != changed[*at]).collect();
    assert!(!differences.is_empty());
    for at in differences {
        assert_eq!((usize::from(OBJECT[at]), usize::from(changed[at])), (INGRESS_IFINDEX, PRIORITY));
        // The low byte of the offset, behind the opcode of a load of four bytes and its registers.
        assert_eq!(OBJECT[at - 2], 0x61);
    }
    assert!(ingress_in_priority(b"no ELF").is_err());
}
