//! The account of device memory: reserve before a load, release when the model is gone.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::size::{format_down, format_up};
use crate::error::{ErrorCode, Fault};

/// All devices and what is reserved on them. Clones are the same ledger.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    accounts: Arc<Mutex<Accounts>>,
}

#[derive(Debug, Default)]
struct Accounts {
    devices: BTreeMap<String, Device>,
    next: u64,
}

#[derive(Debug, Default)]
struct Device {
    limit: u64,
    held: BTreeMap<u64, Holding>,
}

#[derive(Debug)]
struct Holding {
    holder: String,
    bytes: u64,
}

impl Device {
    fn reserved(&self) -> u64 {
        self.held.values().fold(0, |sum, it| sum.saturating_add(it.bytes))
    }

    /// Room for a holder that may already hold something here.
    fn room(&self, key: u64) -> u64 {
        let own = self.held.get(&key).map_or(0, |it| it.bytes);
        self.limit.saturating_sub(self.reserved() - own)
    }
}

/// The state of one device's account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceAccount {
    /// Its name.
    pub device: String,
    /// Bytes that may be reserved in all.
    pub limit: u64,
    /// Bytes that are reserved.
    pub reserved: u64,
    /// Who holds how many bytes, in the order of reservation.
    pub holders: Vec<(String, u64)>,
}

/// There is not enough room on a device.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Insufficient VRAM: required {}, available {}", format_up(*.required), format_down(self.available()))]
pub struct Shortage {
    /// Bytes that were asked for.
    pub required: u64,
    /// The device's account, where `reserved` leaves out what the asker has already; limit 0 for a
    /// device that the ledger does not know.
    pub account: DeviceAccount,
}

impl Shortage {
    /// Bytes that could be had.
    pub fn available(&self) -> u64 {
        self.account.limit.saturating_sub(self.account.reserved)
    }
}

impl From<Shortage> for Fault {
    fn from(shortage: Shortage) -> Self {
        let holders: Vec<_> = shortage
            .account
            .holders
            .iter()
            .map(|(model, bytes)| serde_json::json!({ "model": model, "bytes": bytes }))
            .collect();
        let details = serde_json::json!({
            "devices": [{
                "device": shortage.account.device,
                "required": shortage.required,
                "free": shortage.available(),
                "limit": shortage.account.limit,
                "holders": holders,
            }],
        });
        Fault::new(ErrorCode::OomVram, shortage.to_string()).details(details.to_string())
    }
}

impl Ledger {
    /// A ledger without devices.
    pub fn new() -> Self {
        Self::default()
    }

    /// Opens a device's account, or changes its limit. A limit below what is reserved takes nothing
    /// away; it only lets nothing more in.
    pub fn set_limit(&self, device: impl Into<String>, bytes: u64) {
        self.lock().devices.entry(device.into()).or_default().limit = bytes;
    }

    /// Reserves bytes on one device.
    pub fn reserve(&self, device: &str, bytes: u64, holder: &str) -> Result<Reservation, Shortage> {
        self.reserve_all(&[(device.to_owned(), bytes)], holder)
    }

    /// Reserves on several devices at once: all of it or nothing. A device named twice counts twice.
    pub fn reserve_all(&self, needs: &[(String, u64)], holder: &str) -> Result<Reservation, Shortage> {
        let mut accounts = self.lock();
        let key = accounts.next;
        set(&mut accounts, key, needs, holder)?;
        accounts.next += 1;
        drop(accounts);
        Ok(Reservation { ledger: self.clone(), key, holder: holder.to_owned() })
    }

    /// All accounts, by name of the device.
    pub fn devices(&self) -> Vec<DeviceAccount> {
        self.lock().devices.iter().map(|(name, device)| account(name, device)).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Accounts> {
        // Every change is one assignment at its end, so a panic elsewhere leaves nothing half done.
        self.accounts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Replaces all that `key` holds.
fn set(accounts: &mut Accounts, key: u64, needs: &[(String, u64)], holder: &str) -> Result<(), Shortage> {
    let mut sums: BTreeMap<&str, u64> = BTreeMap::new();
    for (device, bytes) in needs {
        let sum = sums.entry(device).or_default();
        *sum = sum.saturating_add(*bytes);
    }
    let unknown = Device::default();
    for (&name, &required) in &sums {
        let device = accounts.devices.get(name).unwrap_or(&unknown);
        if required > device.room(key) {
            // What the holder has already is no obstacle to its wish for another amount.
            let mut account = account(name, device);
            account.reserved -= device.held.get(&key).map_or(0, |it| it.bytes);
            return Err(Shortage { required, account });
        }
    }
    for (name, device) in &mut accounts.devices {
        match sums.get(name.as_str()) {
            Some(&bytes) if bytes > 0 => {
                device.held.insert(key, Holding { holder: holder.to_owned(), bytes });
            }
            _ => {
                device.held.remove(&key);
            }
        }
    }
    Ok(())
}

fn account(name: &str, device: &Device) -> DeviceAccount {
    DeviceAccount {
        device: name.to_owned(),
        limit: device.limit,
        reserved: device.reserved(),
        holders: device.held.values().map(|it| (it.holder.clone(), it.bytes)).collect(),
    }
}

/// Memory that is spoken for, until this is dropped.
#[must_use = "dropping a reservation releases it"]
pub struct Reservation {
    ledger: Ledger,
    key: u64,
    holder: String,
}

impl Reservation {
    /// Replaces what was estimated by what is now known: all of it, or nothing changes.
    pub fn replace(&mut self, needs: &[(String, u64)]) -> Result<(), Shortage> {
        set(&mut self.ledger.lock(), self.key, needs, &self.holder)
    }

    /// Who holds it.
    pub fn holder(&self) -> &str {
        &self.holder
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        for device in self.ledger.lock().devices.values_mut() {
            device.held.remove(&self.key);
        }
    }
}

impl fmt::Debug for Reservation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reservation")
            .field("key", &self.key)
            .field("holder", &self.holder)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn shortage_is_worded_as_specified() {
        let ledger = Ledger::new();
        ledger.set_limit("CUDA0", 8 * GIB);
        let shortage = ledger.reserve("CUDA0", 16 * GIB, "llama-70b").unwrap_err();
        assert_eq!(shortage.to_string(), "Insufficient VRAM: required 16GB, available 8GB");
        let _small = ledger.reserve("CUDA0", 2 * GIB, "small").unwrap();
        let fault = Fault::from(ledger.reserve("CUDA0", 16 * GIB, "llama-70b").unwrap_err());
        assert_eq!(fault.code, ErrorCode::OomVram);
        assert_eq!(fault.message, "Insufficient VRAM: required 16GB, available 6GB");
        let details: serde_json::Value = serde_json::from_str(&fault.details.unwrap()).unwrap();
        assert_eq!(details["devices"][0]["holders"][0]["model"], "small");
        assert_eq!(details["devices"][0]["free"], 6 * GIB);
    }

    #[test]
    fn a_reservation_is_released_by_drop_and_replaced_in_place() {
        let ledger = Ledger::new();
        ledger.set_limit("a", 100);
        ledger.set_limit("b", 100);
        let mut one = ledger.reserve("a", 80, "one").unwrap();
        assert!(ledger.reserve("a", 30, "two").is_err());
        one.replace(&[("a".into(), 90), ("b".into(), 10)]).unwrap();
        assert_eq!(one.replace(&[("a".into(), 101)]).unwrap_err().available(), 100);
        assert_eq!(ledger.devices()[0].reserved, 90);
        assert_eq!(ledger.devices()[1].holders, [("one".to_owned(), 10)]);
        drop(one);
        assert!(ledger.devices().iter().all(|it| it.reserved == 0));
        assert!(ledger.reserve("c", 1, "x").is_err(), "unknown devices have no room");
    }

    proptest! {
        #[test]
        fn never_oversubscribed(
            limits in prop::collection::vec(0u64..1000, 1..4),
            actions in prop::collection::vec((0usize..3, prop::collection::vec((0usize..4, prop_oneof![0u64..600, Just(u64::MAX)]), 1..4), 0usize..8), 0..60),
        ) {
            let ledger = Ledger::new();
            for (index, limit) in limits.iter().enumerate() {
                ledger.set_limit(index.to_string(), *limit);
            }
            let mut held: Vec<(Reservation, Vec<(String, u64)>)> = Vec::new();
            for (kind, needs, which) in actions {
                let needs: Vec<_> = needs.into_iter().map(|(device, bytes)| (device.to_string(), bytes)).collect();
                match kind {
                    0 => if let Ok(it) = ledger.reserve_all(&needs, "x") { held.push((it, needs)); },
                    1 if !held.is_empty() => drop(held.remove(which % held.len())),
                    2 if !held.is_empty() => {
                        let index = which % held.len();
                        if held[index].0.replace(&needs).is_ok() { held[index].1 = needs; }
                    }
                    _ => {}
                }
                for account in ledger.devices() {
                    prop_assert!(account.reserved <= account.limit);
                    let sum: u64 = held.iter().flat_map(|it| &it.1).filter(|it| it.0 == account.device).map(|it| it.1).sum();
                    prop_assert_eq!(sum, account.reserved);
                }
            }
        }
    }
}
