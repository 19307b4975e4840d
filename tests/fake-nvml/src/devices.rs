//! Handles, and the GPUs and MIG devices they stand for.

use crate::call::{Call, Counter};
use crate::config::{Gpu, Memory, MigDevice, Process, Utilization, Utilizations};
use crate::ffi::{Code, Handle, INVALID_ARGUMENT, NOT_FOUND, NOT_SUPPORTED};
use crate::processes::{is_alive, registered};

/// Handles hold no state: a GPU's index, and a MIG device's plus one, above an arbitrary base.
const BASE: Handle = 0x4e56_0000;

pub fn gpu_handle(index: usize) -> Handle {
    BASE + (index << 8)
}

pub fn mig_handle(index: usize, mig: usize) -> Handle {
    gpu_handle(index) + mig + 1
}

/// What an NVLink leads to.
#[derive(Clone, Copy, PartialEq)]
pub enum Peer {
    Gpu(usize),
    Switch,
}

/// A GPU, or a MIG device of it.
pub struct Device<'a> {
    call: &'a Call,
    pub index: usize,
    pub gpu: &'a Gpu,
    pub mig: Option<(usize, &'a MigDevice)>,
}

impl Call {
    /// The device of a handle, unless this function is to fail for it.
    pub fn device(&self, handle: Handle) -> Result<Device<'_>, Code> {
        let number = handle.checked_sub(BASE).ok_or(INVALID_ARGUMENT)?;
        let (index, below) = (number >> 8, number & 0xff);
        let gpu = self.machine.gpus.get(index).ok_or(INVALID_ARGUMENT)?;
        let mig = match below.checked_sub(1) {
            Some(number) => Some((number, mig_device(gpu, number).ok_or(INVALID_ARGUMENT)?)),
            None => None,
        };
        match mig {
            Some((_, mig)) => {
                self.suffer(&mig.errors, Some(&gpu.delays_ms), &[self.name, "*"])?;
                self.suffer(&gpu.errors, None, &["*"])?;
            }
            None => self.suffer(&gpu.errors, Some(&gpu.delays_ms), &[self.name, "*"])?,
        }
        Ok(Device {
            call: self,
            index,
            gpu,
            mig,
        })
    }

    /// The device of a handle that must not be a MIG device's.
    pub fn gpu(&self, handle: Handle) -> Result<Device<'_>, Code> {
        let device = self.device(handle)?;
        if device.mig.is_some() {
            Err(INVALID_ARGUMENT)
        } else {
            Ok(device)
        }
    }

    /// The handle of a GPU, unless it is to be out of reach.
    pub fn open(&self, index: usize) -> Result<Handle, Code> {
        let gpu = self.machine.gpus.get(index).ok_or(INVALID_ARGUMENT)?;
        self.initialize_gpu(index, gpu.init_ms);
        self.suffer(
            &gpu.errors,
            Some(&gpu.delays_ms),
            &[self.name, "handle", "*"],
        )?;
        Ok(gpu_handle(index))
    }

    /// The handle of the first GPU that a test holds for.
    pub fn find(&self, test: impl Fn(&Gpu) -> bool) -> Result<Handle, Code> {
        self.open(self.machine.gpus.iter().position(test).ok_or(NOT_FOUND)?)
    }

    /// The handle of the MIG device with that UUID.
    pub fn find_mig(&self, uuid: &str) -> Result<Handle, Code> {
        for (index, gpu) in self.machine.gpus.iter().enumerate() {
            let devices = gpu
                .mig
                .iter()
                .filter(|mig| mig.enabled)
                .flat_map(|mig| &mig.devices);
            for (number, device) in devices.enumerate() {
                if device
                    .as_ref()
                    .is_some_and(|device| device.uuid.as_deref() == Some(uuid))
                {
                    self.open(index)?;
                    return Ok(mig_handle(index, number));
                }
            }
        }
        Err(NOT_FOUND)
    }
}

/// A GPU's MIG device of that number, where MIG is enabled.
pub fn mig_device(gpu: &Gpu, number: usize) -> Option<&MigDevice> {
    gpu.mig
        .as_ref()
        .filter(|mig| mig.enabled)?
        .devices
        .get(number)?
        .as_ref()
}

impl<'a> Device<'a> {
    /// This GPU and, as the driver aggregates them for its handle, its MIG devices; or this MIG
    /// device.
    fn parts(&self) -> Vec<(Option<&'a MigDevice>, &'a [Process], Vec<Process>)> {
        let register = |names: &[Option<String>]| {
            let names: Vec<String> = names.iter().flatten().cloned().collect();
            registered(self.call.directory, &names)
        };
        let of_mig = |number: usize, mig: &'a MigDevice| {
            let names = [Some(format!("{}.{number}", self.index)), mig.uuid.clone()];
            (Some(mig), mig.processes.as_slice(), register(&names))
        };
        if let Some((number, mig)) = self.mig {
            return vec![of_mig(number, mig)];
        }
        let names = [Some(self.index.to_string()), self.gpu.uuid.clone()];
        let mut parts = vec![(None, self.gpu.processes.as_slice(), register(&names))];
        let count = self.gpu.mig.as_ref().map_or(0, |mig| mig.devices.len());
        parts.extend(
            (0..count).filter_map(|number| Some(of_mig(number, mig_device(self.gpu, number)?))),
        );
        parts
    }

    /// Everybody with a context on it whom the driver names.
    pub fn processes(&self) -> Vec<Process> {
        let mut listed = Vec::new();
        for (mig, named, registered) in self.parts() {
            for mut process in named.iter().cloned().chain(registered) {
                process.gi = process.gi.or(mig.map(|mig| mig.gi));
                process.ci = process.ci.or(mig.map(|mig| mig.ci));
                listed.push(process);
            }
        }
        if self.call.machine.list_pid_namespace {
            listed.retain(|process| is_alive(process.pid));
        }
        listed
    }

    /// Its memory, with what registered processes hold.
    pub fn memory(&self) -> Result<Memory, Code> {
        let memory = match self.mig {
            Some((_, mig)) => mig.memory,
            None => self.gpu.memory,
        };
        let mut memory = memory.ok_or(NOT_SUPPORTED)?;
        let registered = self
            .parts()
            .into_iter()
            .flat_map(|(_, _, registered)| registered);
        let held: u64 = registered.filter_map(|process| process.memory).sum();
        memory.used += held;
        memory.free = memory.free.saturating_sub(held);
        Ok(memory)
    }

    /// This reading of how busy it is. MIG-enabled GPUs do not support the question, says nvml.h.
    pub fn utilization(&self) -> Result<Utilization, Code> {
        static READINGS: Counter = Counter::new();
        if self.mig.is_some() || self.gpu.mig.as_ref().is_some_and(|mig| mig.enabled) {
            return Err(NOT_SUPPORTED);
        }
        match self.gpu.utilization.as_ref().ok_or(NOT_SUPPORTED)? {
            Utilizations::Always(reading) => Ok(*reading),
            Utilizations::InTurn(readings) => {
                let turn = READINGS
                    .next(self.index)
                    .min(readings.len().saturating_sub(1));
                readings.get(turn).copied().ok_or(NOT_SUPPORTED)
            }
        }
    }

    /// What its NVLinks lead to, by the number of the link.
    pub fn peers(&self) -> Vec<Peer> {
        let direct = self.call.machine.links.iter().flat_map(|link| {
            let peer = match link.gpus {
                (one, other) if one == self.index => Some(other),
                (other, one) if one == self.index => Some(other),
                _ => None,
            };
            peer.into_iter()
                .flat_map(|peer| (0..link.nvlinks).map(move |_| Peer::Gpu(peer)))
        });
        direct
            .chain((0..self.gpu.nvswitch_links).map(|_| Peer::Switch))
            .collect()
    }
}
