//! The kernel's drop counters, as a scrape reads them: through a descriptor of their own, so that a scrape never waits
//! for the reconcile loop, nor the loop for a scrape.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use aya::maps::{Map, MapData, MapError, PerCpuArray};
use netpol_common::abi::{Counter, Direction, counter_index, names};
use netpol_common::verdict::Reason;
use parking_lot::Mutex;

use super::maps::MapsError;
use super::pins::Pins;
use crate::metrics::{CounterSource, DropSample};

/// Namespaces by endpoint number; number 0 is what was not known yet.
pub type EndpointNamespaces = Arc<Mutex<BTreeMap<u32, String>>>;

/// Reads the counters of live endpoints.
pub struct DropCounters {
    counters: PerCpuArray<MapData, Counter>,
    namespaces: EndpointNamespaces,
}

impl DropCounters {
    /// Opens the pinned counters.
    pub fn open(pins: &Pins, namespaces: EndpointNamespaces) -> Result<Self, MapsError> {
        let error = |source| MapsError::Map { map: names::COUNTERS, source };
        let data = MapData::from_pin(pins.map(names::COUNTERS)).map_err(error)?;
        let counters = Map::from_map_data(data).and_then(PerCpuArray::try_from).map_err(error)?;
        Ok(Self { counters, namespaces })
    }

    /// The counters of one endpoint that are not zero.
    pub fn of(&self, endpoint: u32, namespace: &str) -> Result<Vec<DropSample>, MapError> {
        let mut samples = Vec::new();
        for direction in [Direction::Ingress, Direction::Egress] {
            for reason in Reason::ALL {
                let values = self.counters.get(&counter_index(endpoint, direction, reason as u32), 0)?;
                let (packets, bytes) = values
                    .iter()
                    .fold((0, 0), |(packets, bytes), value| (packets + value.packets, bytes + value.bytes));
                if packets > 0 {
                    samples.push(DropSample {
                        endpoint,
                        namespace: namespace.to_owned(),
                        direction,
                        reason,
                        packets,
                        bytes,
                    });
                }
            }
        }
        Ok(samples)
    }
}

impl fmt::Debug for DropCounters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DropCounters").field("namespaces", &self.namespaces).finish_non_exhaustive()
    }
}

impl CounterSource for DropCounters {
    fn samples(&self) -> anyhow::Result<Vec<DropSample>> {
        let namespaces = self.namespaces.lock().clone();
        let mut samples = Vec::new();
        for (endpoint, namespace) in namespaces {
            samples.extend(self.of(endpoint, &namespace)?);
        }
        Ok(samples)
    }
}
