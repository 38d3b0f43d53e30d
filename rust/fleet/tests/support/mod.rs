//! A world in which a fleet's orders are carried out at once, and the time jumps to whatever is due next.

use std::{collections::VecDeque, time::Duration};

use llm_node_core::memory::MemoryUse;
use llm_node_fleet::{Death, Device, DeviceKind, DeviceState, Effect, Event, Fleet, Foreseen, Moment};

/// What worlds have in common.
pub(crate) trait Play {
    /// The fleet, and what time it is.
    fn clock(&mut self) -> (&mut Fleet, &mut Moment);

    /// The devices as they are now.
    fn reading(&self) -> Event;

    /// Does it. What comes of it stands behind all that is `ahead`.
    fn carry_out(&mut self, effect: Effect, ahead: &mut VecDeque<Event>);

    /// Told of each event before the fleet is.
    fn before(&mut self, _event: &Event) {}

    fn read(&mut self) {
        let reading = self.reading();
        self.tell(reading);
    }

    /// Something happens, and all that comes of it.
    fn tell(&mut self, event: Event) {
        let mut ahead = VecDeque::from([event]);
        while let Some(event) = ahead.pop_front() {
            self.before(&event);
            let (fleet, now) = self.clock();
            for effect in fleet.handle(*now, event) {
                self.carry_out(effect, &mut ahead);
            }
        }
    }

    fn pass(&mut self, seconds: f64) {
        let until = *self.clock().1 + Duration::from_secs_f64(seconds);
        loop {
            let (fleet, now) = self.clock();
            let Some(next) = fleet.next_deadline().filter(|next| *next <= until) else { break };
            assert!(next > *now);
            *now = next;
            self.read();
            self.tell(Event::Time);
        }
        *self.clock().1 = until;
    }
}

pub(crate) fn device(kind: DeviceKind, index: u32, total_bytes: u64, free_bytes: u64) -> Device {
    Device {
        index,
        name: format!("{kind:?} {index}"),
        bus_id: None,
        uuid: None,
        total_bytes,
        free_bytes,
        kind,
        processes: Vec::new(),
        state: DeviceState::Ok,
        look: None,
    }
}

pub(crate) fn death(message: &str) -> Death {
    let (ending, call) = Default::default();
    Death { ending, signal: None, call, message: message.to_owned() }
}

/// What a load comes to that takes so much.
pub(crate) fn foreseen(uses: MemoryUse) -> Box<Foreseen> {
    Box::new(Foreseen { memory: vec![uses], ..Foreseen::default() })
}
