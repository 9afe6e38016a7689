//! For how long what an endpoint's packets say about who began is only a guess (decision D5): from a pod's adoption until
//! a minute after its policy is in force, since only then does a wrong guess show. How long an agent takes to list and
//! identify everything is nobody's to know beforehand, and another agent may have begun it.

use std::collections::BTreeMap;
use std::time::Duration;

use netpol_common::abi::{EndpointOptions, SET_ALLOW_ALL, endpoint_flags};

/// How long the reverse orientation is tried for a pod that was running before the agent.
const WINDOW: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug)]
struct Window {
    /// Second of the boot clock.
    until: u32,
    /// Whether the pod's policy is in force, so that the window only runs out.
    under_policy: bool,
}

/// The windows of adopted endpoints, by number. Times are seconds of the boot clock.
#[derive(Debug, Default)]
pub(super) struct Windows(BTreeMap<u32, Window>);

const fn from(now: u32) -> u32 {
    now.saturating_add(WINDOW.as_secs() as u32)
}

impl Windows {
    /// Adopts an endpoint; answers until when its packets are tried in reverse.
    pub(super) fn open(&mut self, endpoint: u32, now: u32) -> u32 {
        let until = from(now);
        let _old = self.0.insert(endpoint, Window { until, under_policy: false });
        until
    }

    /// Goes on with what an earlier agent has opened; `programmed`: and has put every policy in force after it.
    pub(super) fn resume(&mut self, endpoint: u32, options: EndpointOptions, programmed: bool) {
        let EndpointOptions { flags: _, reverse_until: until } = options;
        if until != 0 {
            let _old = self.0.insert(endpoint, Window { until, under_policy: programmed });
        }
    }

    /// Until when, now that an endpoint gets options with these flags; 0 if it was never adopted.
    pub(super) fn with_options(&mut self, endpoint: u32, flags: u32, now: u32) -> u32 {
        let Some(window) = self.0.get_mut(&endpoint) else { return 0 };
        // Without the flag, which stands for everything that adoption leaves open, the policy's word is next.
        if !window.under_policy && flags & endpoint_flags::NO_ADDRESS_CHECK == 0 {
            *window = Window { until: from(now), under_policy: true };
        }
        window.until
    }

    /// An endpoint gets a policy set.
    pub(super) fn with_set(&mut self, endpoint: u32, set: u32) {
        if set != SET_ALLOW_ALL
            && let Some(window) = self.0.get_mut(&endpoint)
        {
            window.under_policy = true;
        }
    }

    /// The endpoint is gone.
    pub(super) fn forget(&mut self, endpoint: u32) {
        let _window = self.0.remove(&endpoint);
    }

    /// How many endpoints were adopted.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADOPTED: u32 = endpoint_flags::NO_ADDRESS_CHECK;
    const SET: u32 = 20;

    #[test]
    fn a_window_is_as_long_after_the_policy_as_after_the_adoption() {
        let mut windows = Windows::default();
        assert_eq!(windows.open(7, 1000), 1060);
        assert_eq!(windows.with_options(7, ADOPTED, 1300), 1060, "its pod is not known yet");
        assert_eq!(windows.with_options(7, 0, 1400), 1460);
        windows.with_set(7, SET);
        assert_eq!(windows.with_options(7, ADOPTED, 1500), 1460);
        assert_eq!(windows.with_options(7, 0, 1600), 1460, "and never opens again");
    }

    #[test]
    fn a_pod_without_address_checks_does_not_open_it_again_by_getting_them() {
        let mut windows = Windows::default();
        let _until = windows.open(7, 1000);
        windows.with_set(7, SET_ALLOW_ALL);
        windows.with_set(7, SET);
        assert_eq!(windows.with_options(7, 0, 5000), 1060);
    }

    #[test]
    fn the_next_agent_goes_on_where_the_last_one_was() {
        let options = EndpointOptions { flags: ADOPTED, reverse_until: 1060 };
        let mut windows = Windows::default();
        windows.resume(7, options, false);
        assert_eq!(windows.with_options(7, 0, 1100), 1160, "adopted, and nothing in force yet");
        let mut windows = Windows::default();
        windows.resume(7, options, true);
        assert_eq!(windows.with_options(7, 0, 1100), 1060);
        windows.resume(8, EndpointOptions::default(), false);
        assert_eq!(windows.with_options(8, 0, 1100), 0, "never adopted");
        windows.forget(7);
        assert_eq!(windows.with_options(7, 0, 1100), 0);
    }
}
