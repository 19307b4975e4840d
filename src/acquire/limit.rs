//! `max_per_user` of /etc/autocvd.conf: how many GPUs one user may hold by claims.

use super::Attempt;
use crate::environment::Environment;
use crate::error::{BlockedDevice, Error, Restriction, Result, Shortage};
use crate::gpu::{ClaimInfo, Snapshot};
use crate::ids::DeviceId;
use crate::policy::{TURN_PATIENCE, TURN_PAUSE};
use crate::probe::Probe;
use crate::request::{ClaimPolicy, Request};
use crate::select::{Selection, Verdict};
use crate::status::attach_claims;
use std::os::fd::OwnedFd;
use std::time::Instant;

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

    /// What the user holds, these devices included; claims carry the user's number until they are
    /// shown. Several shares of one device are one.
    fn held_with(&self, chosen: &[DeviceId], snapshot: &Snapshot) -> usize {
        let is_users = |claim: &ClaimInfo| claim.user.as_ref() == Some(&self.uid);
        count(snapshot, |id, claims| {
            chosen.contains(&id) || claims.iter().any(is_users)
        })
    }

    /// What the user may hold besides: a claim is told of shortly after it was made.
    fn undisclosed(chosen: &[DeviceId], snapshot: &Snapshot) -> usize {
        let is_undisclosed = |claim: &ClaimInfo| claim.user.is_none();
        count(snapshot, |id, claims| {
            !chosen.contains(&id) && claims.iter().any(is_undisclosed)
        })
    }
}

fn count(snapshot: &Snapshot, is_counted: impl Fn(DeviceId, &[ClaimInfo]) -> bool) -> usize {
    let ids = snapshot.device_ids().into_iter();
    ids.filter(|id| is_counted(*id, snapshot.device(*id).claims()))
        .count()
}

/// The user holds too many by now.
pub(super) struct Refused;

impl Attempt<'_> {
    /// Counts again what the user holds, while no other launch of the user claims: two of them may
    /// have looked at the same time. The others count again once what is returned is dropped.
    pub(super) fn take_turn(
        &mut self,
        chosen: &[DeviceId],
        snapshot: &Snapshot,
    ) -> std::result::Result<Option<OwnedFd>, Refused> {
        let (Some(limit), Some(claims)) = (&self.limit, &mut self.claims) else {
            return Ok(None);
        };
        let deadline = Instant::now() + TURN_PATIENCE;
        let turn = claims.take_turn(deadline);
        let mut now = snapshot.clone();
        loop {
            attach_claims(&mut now, claims);
            let held = limit.held_with(chosen, &now);
            if held > limit.most {
                return Err(Refused);
            }
            let is_sure = held + Limit::undisclosed(chosen, &now) <= limit.most;
            if is_sure || Instant::now() >= deadline {
                return Ok(turn);
            }
            std::thread::sleep(TURN_PAUSE);
        }
    }

    /// Leaves what is chosen where the user would hold too many with it.
    pub(super) fn apply_limit(&mut self, selection: &mut Selection, snapshot: &mut Snapshot) {
        let Some(limit) = &self.limit else { return };
        let held = limit.held_with(&[], snapshot);
        self.over_limit = match selection {
            Selection::Chosen(chosen) if limit.held_with(chosen, snapshot) > limit.most => {
                Some(BlockedDevice {
                    label: "this user".to_owned(),
                    reason: format!(
                        "holds {held} of at most {} (max_per_user in {})",
                        limit.most,
                        crate::site::PATH
                    ),
                })
            }
            _ => None,
        };
        if self.over_limit.is_some() {
            // The choice may have left GPUs unread, of which it is told now.
            self.read_the_rest(snapshot);
            let is_free = |id: &DeviceId| snapshot.device(*id).verdict() == Verdict::Free;
            let candidates = self.constraints.devices.iter().copied();
            *selection = Selection::NotNow {
                free: candidates.filter(is_free).collect(),
            };
        }
    }
}
