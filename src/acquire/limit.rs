//! `max_per_user` of /etc/autocvd.conf: how many GPUs one user may hold by claims.

use super::Attempt;
use crate::environment::Environment;
use crate::error::{BlockedDevice, Error, Restriction, Result, Shortage};
use crate::gpu::Snapshot;
use crate::ids::DeviceId;
use crate::probe::Probe;
use crate::request::{ClaimPolicy, Request};
use crate::select::Selection;

/// How many GPUs this user may hold.
pub(super) struct Limit {
    most: usize,
    uid: String,
}

impl Limit {
    /// The limit on a request, if there is one: not where no claim is made, nor inside a launch,
    /// whose GPUs are counted already.
    pub(super) fn of(
        request: &Request,
        environment: &Environment,
        probe: &dyn Probe,
    ) -> Option<Self> {
        let claims = request.claim != ClaimPolicy::No && probe.is_live();
        let most = environment.site.max_per_user;
        most.filter(|_| claims && environment.inside.is_none())
            .map(|most| Self {
                most,
                uid: rustix::process::geteuid().as_raw().to_string(),
            })
    }

    /// How many GPUs the user may hold.
    pub(super) fn most(&self) -> usize {
        self.most
    }

    /// # Errors
    /// More are asked for than the user may ever hold.
    pub(super) fn check(&self, num_gpus: usize, snapshot: &Snapshot) -> Result<()> {
        if num_gpus <= self.most {
            return Ok(());
        }
        Err(Error::Impossible(Box::new(Shortage {
            requested: num_gpus,
            usable: self.most,
            total: snapshot.gpus.len(),
            several_mig_devices: false,
            unusable: Vec::new(),
            too_small: None,
            restrictions: vec![Restriction::MaxPerUser],
        })))
    }

    /// What the user holds; claims carry the user's number until they are shown.
    fn held(&self, snapshot: &Snapshot) -> usize {
        let is_own = |id: &DeviceId| {
            let mut users = snapshot.device(*id).claims().iter();
            users.any(|claim| claim.user.as_ref() == Some(&self.uid))
        };
        snapshot.device_ids().iter().filter(|id| is_own(id)).count()
    }
}

impl Attempt<'_> {
    /// Leaves what is chosen where the user would hold too many with it.
    pub(super) fn apply_limit(&mut self, selection: &mut Selection, snapshot: &Snapshot) {
        let Some(limit) = &self.limit else { return };
        let held = limit.held(snapshot);
        self.over_limit = match selection {
            Selection::Chosen(chosen) if held + chosen.len() > limit.most => Some(BlockedDevice {
                label: "this user".to_owned(),
                reason: format!(
                    "holds {held} of at most {} (max_per_user in {})",
                    limit.most,
                    crate::site::PATH
                ),
            }),
            _ => None,
        };
        if let (Some(_), Selection::Chosen(chosen)) = (&self.over_limit, &selection) {
            *selection = Selection::NotNow {
                free: chosen.clone(),
            };
        }
    }
}
