//! What is told of devices: what models hold of each, and what others take.

use llm_node_core::memory::MemoryUse;
use serde::Serialize;

use super::{Entry, Holding, Ledger};
use crate::{Device, DeviceKind, KeptBy, WorkerId, event::HOST};

/// A device, what models hold of it, and what they may. One that shares the host's memory has none of its own: its
/// figures are 0, and what models hold there is told of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// What the node calls it: [`Device::id`].
    pub id: String,
    /// Of which device its memory is.
    pub account: String,
    /// As it was measured last.
    pub device: Device,
    /// Most that models may hold, in bytes.
    pub limit_bytes: u64,
    /// What others take of it, in bytes.
    pub foreign_bytes: u64,
    /// What they hold, in bytes.
    pub reserved_bytes: u64,
    /// So much of that is beyond what their engines say, in bytes.
    pub unexplained_bytes: u64,
    /// What models that have gone held, and what does not show as free yet, in bytes.
    pub settling_bytes: u64,
    /// Each of them.
    pub holders: Vec<Holder>,
}

/// Who holds memory of a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Holder {
    /// A model.
    pub model_id: String,
    /// Which of its workers.
    #[serde(skip)]
    pub worker: WorkerId,
    /// Of which device: what the node calls it.
    pub device: String,
    /// How much.
    pub bytes: u64,
    /// What keeps it where another needs the room, as far as that is known; `None`: it may go.
    pub kept_by: Option<KeptBy>,
}

impl Account {
    fn of_shared_memory(id: &str, device: &Device) -> Self {
        Self {
            id: id.to_owned(),
            account: HOST.to_owned(),
            device: Device { total_bytes: 0, free_bytes: 0, ..device.clone() },
            limit_bytes: 0,
            foreign_bytes: 0,
            reserved_bytes: 0,
            unexplained_bytes: 0,
            settling_bytes: 0,
            holders: Vec::new(),
        }
    }
}

impl Ledger {
    /// All devices: GPUs by their number, the host last.
    pub(crate) fn accounts(&self) -> Vec<Account> {
        let mut accounts: Vec<Account> = self
            .entries
            .iter()
            .map(|(name, entry)| match entry.device.kind {
                DeviceKind::Unified => Account::of_shared_memory(name, &entry.device),
                DeviceKind::Gpu | DeviceKind::Host => self.account(name, entry),
            })
            .collect();
        accounts.sort_by_key(|account| (account.device.kind == DeviceKind::Host, account.device.index));
        accounts
    }

    fn account(&self, name: &str, entry: &Entry) -> Account {
        Account {
            id: name.to_owned(),
            account: name.to_owned(),
            device: entry.device.clone(),
            limit_bytes: entry.limit,
            foreign_bytes: self.foreign(name),
            reserved_bytes: self.reserved(name),
            unexplained_bytes: self.unexplained(name),
            settling_bytes: self.settling_of(name),
            holders: self.holders(name).collect(),
        }
    }

    /// Who holds something of where a load would go.
    pub(crate) fn holders_of(&self, uses: &[MemoryUse]) -> Vec<Holder> {
        let needs = self.needs(uses);
        needs.keys().flat_map(|name| self.holders(name)).collect()
    }

    /// What others than models take of a device, or seem to.
    pub(super) fn foreign(&self, name: &str) -> u64 {
        self.entries.get(name).map_or(0, |entry| {
            let taken = entry.device.total_bytes.saturating_sub(entry.device.free_bytes);
            taken.saturating_sub(entry.taken_when_measured)
        })
    }

    fn unexplained(&self, name: &str) -> u64 {
        let beyond = |holding: &Holding| {
            self.on_account(&holding.needs, name).saturating_sub(self.on_account(&holding.said, name))
        };
        self.holdings.values().filter(|holding| !holding.is_pending).map(beyond).fold(0, u64::saturating_add)
    }

    pub(super) fn holders<'a>(&'a self, name: &'a str) -> impl Iterator<Item = Holder> + 'a {
        self.holdings.iter().filter_map(move |(&worker, holding)| {
            let bytes = Some(self.on_account(&holding.needs, name)).filter(|bytes| *bytes > 0)?;
            let (model_id, device) = (holding.model_id.clone(), name.to_owned());
            let kept_by = match (holding.is_pinned, holding.is_pending) {
                (true, _) => Some(KeptBy::Pin),
                (false, true) => Some(KeptBy::Loading),
                (false, false) => None,
            };
            Some(Holder { model_id, worker, device, bytes, kept_by })
        })
    }
}
