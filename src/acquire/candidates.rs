//! The devices that a request may have.

use crate::claim::ClaimStore;
use crate::environment::Environment;
use crate::gpu::Snapshot;
use crate::ids::{self, Device, DeviceId};
use crate::request::Request;
use crate::{Error, ErrorKind, Result};

/// The devices that the request may have, in ascending order.
pub(super) fn of(
    request: &Request,
    environment: &Environment,
    snapshot: &Snapshot,
    claims: Option<&mut ClaimStore>,
) -> Result<Vec<DeviceId>> {
    let mut candidates = ancestor_devices(environment, snapshot, claims);
    if let Some(visible) = visible(request, environment, snapshot)? {
        candidates.retain(|device| visible.contains(device));
    }
    if let Some(only) = &request.only {
        let only = resolve("only", only, snapshot)?;
        candidates.retain(|device| only.contains(device));
    }
    let exclude = resolve("exclude", &request.exclude, snapshot)?;
    candidates.retain(|device| !exclude.contains(device));
    Ok(candidates)
}

/// What the launch around this process holds; all devices where there is none.
fn ancestor_devices(
    environment: &Environment,
    snapshot: &Snapshot,
    mut claims: Option<&mut ClaimStore>,
) -> Vec<DeviceId> {
    let Some(inside) = &environment.inside else {
        return snapshot.device_ids();
    };
    // Variables travel to other machines and outlive what they tell of: the claims themselves count.
    let keys = match &mut claims {
        Some(claims) if !inside.claims.is_empty() => claims.ancestor_devices().unwrap_or_default(),
        _ => inside.devices.clone(),
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
    let visible = ids::parse_visible_devices(value, snapshot);
    if visible.is_empty() {
        let text = format!(
            "CUDA_VISIBLE_DEVICES='{value}' allows none of this machine's GPUs; ask the batch \
             system for GPUs, or unset it"
        );
        return Err(Error::new(ErrorKind::Impossible, text));
    }
    Ok(Some(visible))
}

fn resolve(option: &str, ids: &[String], snapshot: &Snapshot) -> Result<Vec<DeviceId>> {
    let mut devices = Vec::new();
    for id in ids {
        let named = ids::resolve(id, snapshot);
        devices.extend(named.map_err(|e| Error::new(e.kind(), format!("--{option}: {e}")))?);
    }
    Ok(devices)
}
