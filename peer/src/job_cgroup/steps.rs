//! The steps of a job, by the numbers of their directories.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};

/// Steps of a job that are remembered, the newest.
const MAX_STEPS: usize = 512;

/// A job's steps that are known.
#[derive(Debug, Default)]
pub(super) struct Steps {
    names: BTreeMap<u64, OsString>,
    /// The greatest number. It stands here so that a look at many jobs need not follow their trees.
    newest: Option<u64>,
}

impl Steps {
    /// No steps are known any more.
    pub fn clear(&mut self) {
        *self = Steps::default();
    }

    /// Notes more steps: the number and the name of each one's directory.
    pub fn add(&mut self, steps: impl IntoIterator<Item = (u64, OsString)>) {
        self.names.extend(steps);
        while self.names.len() > MAX_STEPS {
            self.names.pop_first();
        }
        self.newest = self.names.last_key_value().map(|(number, _)| *number);
    }

    /// A step has ended.
    pub fn remove(&mut self, name: &OsStr) {
        self.names.retain(|_, step| step != name);
        self.newest = self.names.last_key_value().map(|(number, _)| *number);
    }

    /// The number of the newest one.
    pub fn newest(&self) -> Option<u64> {
        self.newest
    }

    /// The number of the newest one that is older than this number.
    pub fn newest_before(&self, number: u64) -> Option<u64> {
        match self.newest {
            Some(newest) if newest >= number => self.names.range(..number).next_back().map(|(number, _)| *number),
            newest => newest,
        }
    }

    /// How many are known.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// The name of a step's directory.
    pub fn name(&self, number: u64) -> Option<&OsStr> {
        self.names.get(&number).map(OsString::as_os_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_before_a_number_is_found_and_the_oldest_are_forgotten() {
        let mut steps = Steps::default();
        assert_eq!((steps.newest(), steps.newest_before(9)), (None, None));
        steps.add([(5, "b".into()), (3, "a".into()), (8, "c".into())]);
        assert_eq!(
            [2, 3, 4, 5, 6, 8, 9].map(|number| steps.newest_before(number)),
            [None, None, Some(3), Some(3), Some(5), Some(5), Some(8)]
        );
        steps.remove(OsStr::new("c"));
        assert_eq!((steps.newest(), steps.newest_before(9), steps.name(8)), (Some(5), Some(5), None));
        steps.add((10..10 + MAX_STEPS as u64).map(|number| (number, number.to_string().into())));
        assert_eq!((steps.newest_before(10), steps.name(10)), (None, Some(OsStr::new("10"))));
        steps.clear();
        assert_eq!(steps.newest(), None);
    }
}
