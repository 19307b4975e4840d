//! What crosses the C boundary: return codes, structs as nvml.h lays them out, and out-pointers.

use std::ffi::{CStr, c_char, c_longlong, c_uint, c_ulonglong};

/// nvmlReturn_t.
pub type Code = c_uint;

pub const SUCCESS: Code = 0;
pub const UNINITIALIZED: Code = 1;
pub const INVALID_ARGUMENT: Code = 2;
pub const NOT_SUPPORTED: Code = 3;
pub const NOT_FOUND: Code = 6;
pub const INSUFFICIENT_SIZE: Code = 7;
pub const ARGUMENT_VERSION_MISMATCH: Code = 25;
pub const UNKNOWN: Code = 999;

/// NVML_VALUE_NOT_AVAILABLE in an unsigned long long.
pub const VALUE_NOT_AVAILABLE: c_ulonglong = c_ulonglong::MAX;
/// What gpuInstanceId and computeInstanceId hold outside MIG.
pub const NO_INSTANCE: c_uint = c_uint::MAX;

/// nvmlDevice_t: opaque to the caller, see [`crate::devices`].
pub type Handle = usize;

#[repr(C)]
pub struct Memory {
    pub total: c_ulonglong,
    pub free: c_ulonglong,
    pub used: c_ulonglong,
}

#[repr(C)]
pub struct MemoryV2 {
    pub version: c_uint,
    pub total: c_ulonglong,
    pub reserved: c_ulonglong,
    pub free: c_ulonglong,
    pub used: c_ulonglong,
}

#[repr(C)]
pub struct Utilization {
    pub gpu: c_uint,
    pub memory: c_uint,
}

/// The beginning that all versions of nvmlPciInfo_t share; only the third has the long id after it.
#[repr(C)]
pub struct PciInfo {
    pub bus_id_legacy: [c_char; 16],
    pub domain: c_uint,
    pub bus: c_uint,
    pub device: c_uint,
    pub pci_device_id: c_uint,
    pub pci_subsystem_id: c_uint,
}

#[repr(C)]
pub struct PciInfoV3 {
    pub common: PciInfo,
    pub bus_id: [c_char; 32],
}

#[repr(C)]
pub struct AddressingMode {
    pub version: c_uint,
    pub value: c_uint,
}

/// nvmlFieldValue_t; the value is a union of eight bytes, of which an unsigned int takes the first
/// four.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct FieldValue {
    pub id: c_uint,
    pub scope: c_uint,
    pub timestamp: c_longlong,
    pub latency: c_longlong,
    pub value_type: c_uint,
    pub code: Code,
    pub value: c_ulonglong,
}

#[repr(C)]
pub struct ProcessV1 {
    pub pid: c_uint,
    pub used_gpu_memory: c_ulonglong,
}

#[repr(C)]
pub struct ProcessV2 {
    pub pid: c_uint,
    pub used_gpu_memory: c_ulonglong,
    pub gpu_instance_id: c_uint,
    pub compute_instance_id: c_uint,
}

/// What the `_v3` functions of drivers 535.43 to 535.86 wrote.
#[repr(C)]
pub struct ProcessOf535 {
    pub common: ProcessV2,
    pub used_gpu_cc_protected_memory: c_ulonglong,
}

/// The version field of NVML's versioned structs.
pub const fn version<T>(number: c_uint) -> c_uint {
    size_of::<T>() as c_uint | number << 24
}

/// A pointer that the caller wants something written through. Null is an invalid argument;
/// otherwise the caller of the C function vouches for it, as nvml.h demands.
#[repr(transparent)]
pub struct Out<T>(*mut T);

impl<T> Out<T> {
    pub fn is_null(&self) -> bool {
        self.0.is_null()
    }

    pub fn set(&self, value: T) -> Result<(), Code> {
        self.set_at(0, value)
    }

    /// Writes an element of an array; the caller has told how long it is.
    pub fn set_at(&self, index: usize, value: T) -> Result<(), Code> {
        if self.0.is_null() {
            return Err(INVALID_ARGUMENT);
        }
        // SAFETY: not null, and the caller of the C function vouches for the rest.
        unsafe { self.0.add(index).write(value) };
        Ok(())
    }

    /// The same address as a pointer to something else.
    pub fn cast<U>(&self) -> Out<U> {
        Out(self.0.cast())
    }
}

impl<T: Copy> Out<T> {
    /// Reads an element of an array that goes in and out.
    pub fn get_at(&self, index: usize) -> Result<T, Code> {
        if self.0.is_null() {
            return Err(INVALID_ARGUMENT);
        }
        // SAFETY: not null, and the caller of the C function has initialized as many elements as it
        // says.
        Ok(unsafe { self.0.add(index).read() })
    }
}

impl Out<c_uint> {
    /// Reads an argument that goes in and out: a count, or the version that begins a struct.
    pub fn get(&self) -> Result<c_uint, Code> {
        if self.0.is_null() {
            return Err(INVALID_ARGUMENT);
        }
        // SAFETY: not null, and the caller of the C function has initialized it.
        Ok(unsafe { self.0.read() })
    }
}

impl Out<c_char> {
    /// Writes a C string into a buffer of `length` bytes.
    pub fn set_string(&self, text: &str, length: c_uint) -> Result<(), Code> {
        if text.len() >= length as usize {
            return Err(INSUFFICIENT_SIZE);
        }
        for (index, byte) in text.bytes().chain([0]).enumerate() {
            self.set_at(index, byte as c_char)?;
        }
        Ok(())
    }
}

/// A C string that the caller passes in.
#[repr(transparent)]
pub struct In(*const c_char);

impl In {
    pub fn get(&self) -> Result<&str, Code> {
        if self.0.is_null() {
            return Err(INVALID_ARGUMENT);
        }
        // SAFETY: not null, and the caller of the C function vouches for a terminated string.
        unsafe { CStr::from_ptr(self.0) }
            .to_str()
            .map_err(|_| INVALID_ARGUMENT)
    }
}

/// A C string in an array of fixed size, cut where it is too long.
pub fn chars<const N: usize>(text: &str) -> [c_char; N] {
    let mut array = [0; N];
    for (to, from) in array[..N - 1].iter_mut().zip(text.bytes()) {
        *to = from as c_char;
    }
    array
}
