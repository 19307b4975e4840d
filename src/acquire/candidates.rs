//! The devices that a request may have.

use crate::claim::{Ancestry, ClaimStore};
use crate::environment::{DeviceOrder, Environment};
use crate::error::{Error, IdList, Restriction, Result};
use crate::gpu::{Gpu, Snapshot};
use crate::ids::{self, Device, DeviceId, IdForm};
use crate::observer::{NoObserver, Observer};
use crate::pci::PciBusId;
use crate::request::{ClaimPolicy, Request};

/// The devices that a request may have, and what narrowed the choice.
pub(super) struct Candidates {
    /// In ascending order.
    pub(super) devices: Vec<DeviceId>,
    pub(super) restrictions: Vec<Restriction>,
}

impl Candidates {
    pub(super) fn of(
        request: &Request,
        environment: &Environment,
        snapshot: &Snapshot,
        claims: Option<&mut ClaimStore>,
        observer: &mut dyn Observer,
    ) -> Result<Self> {
        let all = snapshot.device_ids();
        let mut candidates = Self {
            devices: all,
            restrictions: Vec::new(),
        };
        let held = ancestor_devices(request, environment, snapshot, claims);
        candidates.keep(Restriction::Ancestor, |device| held.contains(device));
        if let Some(visible) = visible(request, environment, snapshot)? {
            candidates.keep(Restriction::VisibleDevices, |device| {
                visible.contains(device)
            });
        }
        if let Some(only) = &request.only {
            let only = resolve(only, IdList::Only, snapshot)?;
            candidates.keep(Restriction::Only, |device| only.contains(device));
        }
        let exclude = excluded(&request.exclude, snapshot, observer)?;
        candidates.keep(Restriction::Exclude, |device| !exclude.contains(device));
        if request.id_form == IdForm::Uuid {
            // Another one may have one.
            candidates.keep(Restriction::Uuid, |id| {
                snapshot.device(*id).uuid().is_some()
            });
        }
        Ok(candidates)
    }

    /// Whether the names of GPUs alone may tell which of them the request can have.
    pub(super) fn are_narrowed_by_name(request: &Request, environment: &Environment) -> bool {
        let in_list = request.only.is_some() || !request.exclude.is_empty();
        let inherits = request.inherit || environment.batch_job.is_some();
        // What the launch around this one holds is in its claims.
        (in_list || inherits) && environment.inside.is_none()
    }

    /// The positions of the GPUs that the request can have, where their names alone tell: those of
    /// MIG devices are known later.
    pub(super) fn gpus_by_name(
        request: &Request,
        environment: &Environment,
        names: &Snapshot,
    ) -> Option<Vec<usize>> {
        // That one has no UUID yet says nothing: the driver may make it when it initializes the
        // GPU.
        let request = Request {
            id_form: IdForm::Index,
            ..request.clone()
        };
        let has_all_names = names.gpus.iter().all(|gpu| gpu.uuid.is_some());
        let candidates = Self::of(&request, environment, names, None, &mut NoObserver).ok()?;
        let gpus = candidates.devices.iter().map(|id| id.gpu).collect();
        (has_all_names || request.exclude.iter().all(|id| id.parse::<u32>().is_ok()))
            .then_some(gpus)
    }

    fn keep(&mut self, restriction: Restriction, may: impl Fn(&DeviceId) -> bool) {
        let before = self.devices.len();
        self.devices.retain(may);
        if self.devices.len() < before {
            self.restrictions.push(restriction);
        }
    }
}

/// What the launch around this process holds; all devices where there is none.
fn ancestor_devices(
    request: &Request,
    environment: &Environment,
    snapshot: &Snapshot,
    mut claims: Option<&mut ClaimStore>,
) -> Vec<DeviceId> {
    let told = environment.inside.as_ref();
    // A program of a lease carries its choice. A launch is not one: it asks for its shell.
    let from = environment.cuda_visible_devices.as_ref();
    let from = from.and_then(|_| match request.claim {
        ClaimPolicy::Process => Some(std::process::id()),
        _ => Some(rustix::process::getppid()?.as_raw_pid().unsigned_abs()),
    });
    // Variables travel to other machines and outlive what they tell of: the claims themselves
    // count.
    let keys = match &mut claims {
        Some(claims) => claims.nest(told, from).map(<[String]>::to_vec),
        None => told.and_then(Ancestry::devices).map(<[String]>::to_vec),
    };
    let keys = match (&mut claims, &environment.cuda_visible_devices) {
        // A process that has several claims gives its programs one of them.
        (Some(claims), Some(value)) => {
            let visible = ids::parse_visible_devices(value, snapshot);
            let visible: Vec<String> = visible
                .into_iter()
                .map(|id| snapshot.device(id).key())
                .collect();
            let is_told = keys.as_ref().is_some_and(|keys| {
                keys.len() == visible.len() && visible.iter().all(|key| keys.contains(key))
            });
            match is_told || visible.is_empty() || !claims.nest_in_process(&visible) {
                true => keys,
                false => Some(visible),
            }
        }
        _ => keys,
    };
    let Some(keys) = keys else {
        return snapshot.device_ids();
    };
    let is_held = |device: &Device| keys.contains(&device.key());
    let held: Vec<DeviceId> = snapshot.devices().filter(is_held).map(Device::id).collect();
    if held.is_empty() {
        if let Some(claims) = claims {
            claims.ignore_ancestors();
        }
        return snapshot.device_ids();
    }
    tracing::debug!(
        "inside another autocvd: choosing among its {} GPUs",
        held.len()
    );
    held
}

/// What `CUDA_VISIBLE_DEVICES` allows; `None` where it does not matter.
fn visible(
    request: &Request,
    environment: &Environment,
    snapshot: &Snapshot,
) -> Result<Option<Vec<DeviceId>>> {
    match (request.inherit, environment.batch_job) {
        (false, None) => return Ok(None),
        (false, Some(variable)) => tracing::info!(
            "in a batch job ({variable}): choosing among what CUDA_VISIBLE_DEVICES allows"
        ),
        (true, _) => {}
    }
    let Some(value) = &environment.cuda_visible_devices else {
        return Ok(None);
    };
    let by_speed = environment.cuda_device_order == DeviceOrder::FastestFirst;
    // Batch systems count by the bus, and do not say so.
    let in_batch_job = environment.batch_job.is_some();
    if by_speed && !in_batch_job && ids::has_ordinal(value) && !ids::are_alike(snapshot) {
        return Err(Error::AmbiguousOrder {
            value: value.clone(),
        });
    }
    let visible = ids::parse_visible_devices(value, snapshot);
    if visible.is_empty() {
        return Err(Error::NothingVisible {
            value: value.clone(),
        });
    }
    Ok(Some(visible))
}

/// The devices that these ids name. One that names none while a GPU cannot be identified may be
/// that GPU's, which is not given in any case.
fn excluded(
    ids: &[String],
    snapshot: &Snapshot,
    observer: &mut dyn Observer,
) -> Result<Vec<DeviceId>> {
    let mut devices = Vec::new();
    for id in ids {
        let is_nameless = |gpu: &Gpu| match PciBusId::parse(id) {
            Some(_) => gpu.pci_bus_id.is_none(),
            None => id.parse::<u32>().is_err() && gpu.uuid.is_none(),
        };
        match ids::resolve(id, IdList::Exclude, snapshot) {
            Ok(found) => devices.extend(found),
            Err(Error::UnknownDevice { .. }) if snapshot.gpus.iter().any(is_nameless) => {
                let nameless = snapshot
                    .devices()
                    .filter(|device| is_nameless(device.gpu()));
                devices.extend(nameless.map(Device::id));
                observer.warn(&format!(
                    "'{id}', to be excluded, names no GPU that can be identified; one that cannot \
                     be is not given either"
                ));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(devices)
}

fn resolve(ids: &[String], list: IdList, snapshot: &Snapshot) -> Result<Vec<DeviceId>> {
    let mut devices = Vec::new();
    for id in ids {
        devices.extend(ids::resolve(id, list, snapshot)?);
    }
    Ok(devices)
}
