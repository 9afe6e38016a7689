//! Facts about the kernel that decisions D2, D6 and D7 of the design rest on, asked of the running one: `cargo xtask vm`
//! asks each supported kernel. No agent runs here, and none of its programs. Beside that, what the suites' own knowledge of
//! kernels is worth.

mod facts;
mod features;
mod object;
mod observer;

use netpol_agent::dataplane::attach::Mechanism;
use netpol_suites::kernel::{Feature, figure, has};
use netpol_testbed::servers::kernel_has_sctp;

#[test]
fn programs_are_attached_by_links_exactly_where_the_kernel_has_them() {
    let mechanism = Mechanism::probe();
    assert_eq!(mechanism == Mechanism::Tcx, has(Feature::Tcx));
    let name = match mechanism {
        Mechanism::Tcx => "TCX links",
        Mechanism::Clsact => "clsact filters",
    };
    figure("kernel", "attached by", name);
}

#[test]
fn sctp_is_tried_with_the_kernels_own_sockets_exactly_where_it_has_them() {
    assert_eq!(kernel_has_sctp(), has(Feature::SctpSockets));
    figure("kernel", "SCTP by", if kernel_has_sctp() { "sockets" } else { "raw INIT" });
}
