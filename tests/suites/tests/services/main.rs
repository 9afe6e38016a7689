//! Policies through Service addresses (decision D6): the real kube-proxy rewrites them, and every connection has to be
//! judged by the backend that it really goes to, whichever the proxy picks.
//!
//! Each case opens at least 200 connections at once in each family, asks the node's connection tracking for the backend
//! of every single one, and holds its outcome against what the policy says of that backend.

mod cases;
mod changes;
mod connections;
mod outside;
mod proxy;
mod service;
mod town;

use std::sync::{Mutex, MutexGuard, PoisonError};

use proxy::Mode;
use town::Town;

static TOWN: Mutex<Option<(Mode, Town)>> = Mutex::new(None);

/// Ends the daemons and removes their files when the last test is over: statics are not dropped.
extern "C" fn tear_down() {
    drop(TOWN.lock().unwrap_or_else(PoisonError::into_inner).take());
}

/// The town under a mode of kube-proxy, empty of policies and Services. Starting one takes longer than most cases, so it
/// is shared by those of a mode.
fn town(mode: Mode) -> Borrowed {
    let mut town = TOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if town.as_ref().is_none_or(|(of, _)| *of != mode) {
        // SAFETY: the function is there as long as the process, and takes nothing.
        let _status = unsafe { libc::atexit(tear_down) };
        // One at a time: the old one ends first.
        drop(town.take());
        *town = Some((mode, Town::start(mode)));
    }
    let mut borrowed = Borrowed(town);
    borrowed.check();
    borrowed.clear();
    borrowed
}

struct Borrowed(MutexGuard<'static, Option<(Mode, Town)>>);

impl std::ops::Deref for Borrowed {
    type Target = Town;

    fn deref(&self) -> &Town {
        &self.0.as_ref().unwrap().1
    }
}

impl std::ops::DerefMut for Borrowed {
    fn deref_mut(&mut self) -> &mut Town {
        &mut self.0.as_mut().unwrap().1
    }
}

/// Every case in every mode: tests are run in order of their names, so one mode after the other.
macro_rules! in_both_modes {
    ($($module:ident::$case:ident),* $(,)?) => {
        mod iptables {
            $(#[test] fn $case() { super::$module::$case(&mut super::town(super::Mode::Iptables)); })*
        }
        mod nftables {
            $(#[test] fn $case() { super::$module::$case(&mut super::town(super::Mode::Nftables)); })*
        }
    };
}

in_both_modes! {
    cases::a_cluster_ip_is_judged_by_the_backend_that_the_proxy_picks,
    cases::a_target_port_by_name_is_judged_by_the_number_that_each_backend_gives_it,
    cases::datagrams_to_a_cluster_ip_are_judged_like_connections,
    cases::associations_to_a_cluster_ip_are_judged_like_connections,
    cases::a_node_port_from_a_pod_is_judged_by_its_backend,
    cases::external_and_load_balancer_addresses_are_judged_by_their_backends,
    cases::a_service_without_selector_is_judged_by_the_addresses_of_its_slices,
    cases::session_affinity_does_not_get_round_a_policy,
    cases::the_pods_of_a_headless_service_are_judged_at_the_senders_interface,
    cases::a_backend_on_the_node_itself_is_allowed_or_not_as_a_whole,
    cases::a_pod_that_reaches_itself_through_a_service_is_judged_as_itself,
    changes::an_address_that_loses_its_last_backend_is_judged_by_where_it_leads,
    changes::a_connection_lives_as_long_as_its_backend_is_allowed_whatever_becomes_of_the_service,
    changes::a_service_that_the_agent_does_not_know_yet_leaks_nothing,
    outside::a_node_port_from_outside_shows_the_policy_what_the_proxy_left,
    outside::external_and_load_balancer_addresses_from_outside_show_the_policy_what_the_proxy_left,
}
