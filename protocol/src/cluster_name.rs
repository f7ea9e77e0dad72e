//! A cluster's name, compared as Slurm compares it.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::ids::{Invalid, is_name};
use crate::printable::FieldValue;

/// A cluster's name: `ClusterName` of slurm.conf(5).
///
/// Slurm writes it in lower case, whatever slurm.conf says. Two spellings that differ in case alone are therefore the
/// same name: they are equal, and have one hash and one place in an order. The spelling itself is kept, for stores and
/// role-session names that have it.
#[derive(Clone, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ClusterName(Box<str>);

impl ClusterName {
    /// The name as it was spelled.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// For a field of a log line.
    pub fn field(&self) -> FieldValue<'_> {
        FieldValue(&self.0)
    }

    /// The name as Slurm spells it.
    pub fn as_slurm_spells_it(&self) -> Self {
        ClusterName(self.0.to_ascii_lowercase().into())
    }

    fn lower(&self) -> impl Iterator<Item = u8> {
        self.0.bytes().map(|byte| byte.to_ascii_lowercase())
    }
}

impl PartialEq for ClusterName {
    fn eq(&self, other: &Self) -> bool {
        self.0.eq_ignore_ascii_case(&other.0)
    }
}

impl Eq for ClusterName {}

impl Hash for ClusterName {
    fn hash<H: Hasher>(&self, state: &mut H) {
        for byte in self.lower() {
            state.write_u8(byte);
        }
        // No name is the beginning of another for the hasher.
        state.write_u8(0xff);
    }
}

impl Ord for ClusterName {
    fn cmp(&self, other: &Self) -> Ordering {
        self.lower().cmp(other.lower())
    }
}

impl PartialOrd for ClusterName {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl FromStr for ClusterName {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        const MAX: usize = 64;
        if text.is_empty() || text.len() > MAX {
            return Err(Invalid::new("cluster name", text, format!("it must have 1 to {MAX} bytes")));
        }
        if !is_name(text) {
            let rule = "only visible characters and spaces may appear, and no space at the end";
            return Err(Invalid::new("cluster name", text, rule));
        }
        Ok(ClusterName(text.into()))
    }
}

impl TryFrom<String> for ClusterName {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        text.parse()
    }
}

impl From<ClusterName> for String {
    fn from(name: ClusterName) -> String {
        name.0.into()
    }
}

impl AsRef<str> for ClusterName {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ClusterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ClusterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::hash_map::DefaultHasher;
    use std::hash::BuildHasher;
    use std::hash::BuildHasherDefault;

    use proptest::prelude::*;

    use super::*;

    fn name(text: &str) -> ClusterName {
        text.parse().unwrap()
    }

    #[test]
    fn capitals_make_no_other_cluster_and_stay_as_they_are() {
        let (mine, slurms) = (name("MyLab"), name("mylab"));
        assert_eq!(mine, slurms);
        assert_eq!((mine.as_str(), mine.as_slurm_spells_it().as_str()), ("MyLab", "mylab"));
        assert_ne!(mine, name("mylab2"));
        let json = serde_json::to_string(&mine).unwrap();
        assert_eq!(serde_json::from_str::<ClusterName>(&json).unwrap().as_str(), "MyLab");
        for bad in ["", "lab ", "a\nb", &"x".repeat(65)] {
            assert!(bad.parse::<ClusterName>().is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn equality_order_and_hash_agree(one in "[A-Ca-c._-]{1,4}", other in "[A-Ca-c._-]{1,4}") {
            let (a, b) = (name(&one), name(&other));
            let [lower_one, lower_other] = [&one, &other].map(|text| text.to_ascii_lowercase());
            let same = lower_one == lower_other;
            prop_assert_eq!(a == b, same);
            prop_assert_eq!(a.cmp(&b) == Ordering::Equal, same);
            let hash = |name: &ClusterName| BuildHasherDefault::<DefaultHasher>::default().hash_one(name);
            if same {
                prop_assert_eq!(hash(&a), hash(&b));
            }
        }
    }
}
