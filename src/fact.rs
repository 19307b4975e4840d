//! What a driver's answer to one question can be.

/// The answer to a question about a device.
///
/// ```
/// use autocvd::Fact;
///
/// let percent = Fact::Value(40);
/// assert_eq!(percent.map(|percent| percent > 5).value(), Some(true));
/// assert_eq!(Fact::<u32>::NotApplicable.value(), None);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Fact<T> {
    /// The driver told it.
    Value(T),
    /// This machine has no such thing (NVML's NOT_SUPPORTED, `N/A` of nvidia-smi): another fact
    /// decides, and no waiting changes that.
    NotApplicable,
    /// The question failed, or was not asked. Never taken for zero.
    #[default]
    Unknown,
}

impl<T> Fact<T> {
    /// The value, where there is one.
    pub fn value(self) -> Option<T> {
        match self {
            Self::Value(value) => Some(value),
            Self::NotApplicable | Self::Unknown => None,
        }
    }

    /// The value, to change it.
    pub(crate) fn value_mut(&mut self) -> Option<&mut T> {
        match self {
            Self::Value(value) => Some(value),
            Self::NotApplicable | Self::Unknown => None,
        }
    }

    /// The same fact, by reference.
    pub fn as_ref(&self) -> Fact<&T> {
        match self {
            Self::Value(value) => Fact::Value(value),
            Self::NotApplicable => Fact::NotApplicable,
            Self::Unknown => Fact::Unknown,
        }
    }

    /// A fact about something else that follows from the value.
    pub fn map<U>(self, f: impl FnOnce(T) -> U) -> Fact<U> {
        match self {
            Self::Value(value) => Fact::Value(f(value)),
            Self::NotApplicable => Fact::NotApplicable,
            Self::Unknown => Fact::Unknown,
        }
    }

    /// Whether the question failed, or was not asked.
    pub fn is_unknown(&self) -> bool {
        matches!(self, Self::Unknown)
    }

    /// Whether this machine has no such thing.
    pub fn is_not_applicable(&self) -> bool {
        matches!(self, Self::NotApplicable)
    }
}

impl<T> Fact<Vec<T>> {
    /// What is on a list, as far as it is known.
    pub fn items(&self) -> &[T] {
        match self {
            Self::Value(items) => items,
            Self::NotApplicable | Self::Unknown => &[],
        }
    }

    /// The same, to be changed.
    pub(crate) fn items_mut(&mut self) -> &mut [T] {
        match self {
            Self::Value(items) => items,
            Self::NotApplicable | Self::Unknown => &mut [],
        }
    }
}

/// What is not there is unknown.
impl<T> From<Option<T>> for Fact<T> {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Unknown, Self::Value)
    }
}

/// As its value; without one, as null. Which facts do not apply is told beside them.
impl<T: serde::Serialize> serde::Serialize for Fact<T> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.as_ref().value().serialize(serializer)
    }
}

impl<'de, T: serde::Deserialize<'de>> serde::Deserialize<'de> for Fact<T> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Option::deserialize(deserializer).map(Self::from)
    }
}
