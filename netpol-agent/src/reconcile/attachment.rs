//! Programs on devices: put there, tried again, and compared with what should be there.

use std::time::Instant;

use tracing::warn;

use super::{ATTACH_AGAIN, Engine};
use crate::dataplane::attach::{Mechanism, Place, Role};
use crate::metrics::Stage;

impl Engine {
    pub(super) fn attach_all(&mut self) {
        let ports: Vec<u32> = self.ports.iter().map(|(ifindex, _)| ifindex).collect();
        for ifindex in ports {
            self.attach(ifindex);
        }
    }

    /// Attaches to a port. A failure is counted and tried again: the port stays as it was meanwhile.
    pub(super) fn attach(&mut self, ifindex: u32) {
        self.changed = true;
        let result = self.dataplane.attach(ifindex, Role::Pod);
        let Some(port) = self.ports.get_mut(ifindex) else { return };
        match result {
            Ok(()) => {
                if !port.attached
                    && let Some(seen) = port.seen
                {
                    self.state.observe_attach(seen.elapsed());
                }
                if !port.attached {
                    self.attached_at = Instant::now();
                }
                port.attached = true;
            }
            Err(error) => {
                port.attached = false;
                warn!(interface = port.link.name, ifindex, %error, "could not attach, trying again");
                self.attach_later();
            }
        }
    }

    pub(super) fn attach_later(&mut self) {
        self.attach_at = Some(Instant::now() + ATTACH_AGAIN);
        self.state.sync_failed(Stage::Attach);
    }

    /// Compares what is attached with what should be (decision D14).
    pub(super) fn verify(&mut self) {
        self.list_again();
        self.verify_guard();
        self.look_at_bridge_netfilter();
        let ports = self.ports.iter().map(|(ifindex, port)| (ifindex, Role::Pod, port.attached));
        let devices = self.devices.iter().map(|(ifindex, device)| (ifindex, Role::Host, device.attached));
        let all: Vec<(u32, Role, bool)> = ports.chain(devices).collect();
        for (ifindex, role, attached) in all {
            if !attached || self.dataplane.mechanism() == Mechanism::Clsact {
                self.attach_as(ifindex, role);
                continue;
            }
            match self.dataplane.place(ifindex, role) {
                Ok(Place::First) => {}
                Ok(Place::Behind) => {
                    self.state.sync_failed(Stage::Attach);
                    warn!(ifindex, "another program runs before ours and may keep packets from it; going first again");
                    if let Err(error) = self.dataplane.go_first(ifindex, role) {
                        warn!(ifindex, %error, "could not go first");
                    }
                }
                Ok(Place::Missing) => {
                    self.state.sync_failed(Stage::Attach);
                    warn!(ifindex, "our program was taken off, attaching it again");
                    self.attach_as(ifindex, role);
                }
                // The device went meanwhile; the notification is under way.
                Err(error) => warn!(ifindex, %error, "could not verify"),
            }
        }
    }

    fn attach_as(&mut self, ifindex: u32, role: Role) {
        match role {
            Role::Pod => self.attach(ifindex),
            Role::Host => self.hook(ifindex),
        }
    }
}
