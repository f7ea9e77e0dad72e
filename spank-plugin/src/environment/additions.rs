//! What the plugin adds to variables that belong to the user: they keep no sign of it themselves, so a variable of its own
//! lists the additions. With it a nested submission can take away exactly those, and leave what the user has set.

use credd_protocol::no_proxy::{self, Change};
use slurm_spank::{Environment, Error};

use super::{METADATA_DISABLED, REGIONS};

/// The list: `NAME=VALUE` for a variable that was set as a whole, `NAME+=TEXT` for one that got a text at its end, with
/// spaces between them. No such value or text holds a space.
pub(super) const ADDED: &str = "CREDD_ADDED";

/// The longest list that is read: ours are shorter.
const MAX_LIST_BYTES: usize = 512;

/// Variables being changed, and the list of the changes so far.
pub(super) struct Additions<'a> {
    env: &'a mut dyn Environment,
    list: Vec<u8>,
}

impl<'a> Additions<'a> {
    /// To this environment.
    pub(super) fn to(env: &'a mut dyn Environment) -> Self {
        Additions { env, list: Vec::new() }
    }

    /// The environment as it is by now.
    pub(super) fn env(&self) -> &dyn Environment {
        &*self.env
    }

    /// Sets a variable. A value that it has already is not ours to remove.
    pub(super) fn set(&mut self, name: &str, value: &[u8]) -> Result<(), Error> {
        if self.env.get(name).is_some_and(|old| old == value) {
            return Ok(());
        }
        self.env.set(name, value)?;
        self.list(name, b"=", value);
        Ok(())
    }

    /// Makes every client ask 127.0.0.1 itself: see [`no_proxy`].
    pub(super) fn bypass_proxies(&mut self) -> Result<(), Error> {
        let [upper, lower] = no_proxy::NAMES.map(|name| self.env.get(name));
        let changes = no_proxy::bypass([upper.as_deref(), lower.as_deref()]);
        for (name, change) in no_proxy::NAMES.into_iter().zip(changes) {
            match change {
                Change::Keep => {}
                Change::Set(value) => self.set(name, value)?,
                Change::Extend { list, with } => self.append(name, list, with)?,
            }
        }
        Ok(())
    }

    /// Adds a text at the end of a variable's value, or of the value it is to begin with.
    fn append(&mut self, name: &str, to: &[u8], text: &[u8]) -> Result<(), Error> {
        self.env.set(name, &[to, text].concat())?;
        if !text.is_empty() {
            self.list(name, b"+=", text);
        }
        Ok(())
    }

    /// Leaves the list for whoever has to undo it.
    pub(super) fn note(self) -> Result<(), Error> {
        if self.list.is_empty() { Ok(()) } else { self.env.set(ADDED, &self.list) }
    }

    fn list(&mut self, name: &str, sign: &[u8], text: &[u8]) {
        if !self.list.is_empty() {
            self.list.push(b' ');
        }
        self.list.extend_from_slice(&[name.as_bytes(), sign, text].concat());
    }
}

/// Takes the listed additions away, where they still stand. The list is the user's to forge, as all of the environment is:
/// whatever it says, only variables that the plugin adds to are touched.
pub(super) fn undo(env: &mut dyn Environment) -> Result<(), Error> {
    let Some(list) = env.get(ADDED) else { return Ok(()) };
    let mut result = env.unset(ADDED);
    if list.len() > MAX_LIST_BYTES {
        return result;
    }
    for item in list.split(|byte| *byte == b' ') {
        let Some(at) = item.iter().position(|byte| *byte == b'=') else { continue };
        let (name, appended) = match item[..at].strip_suffix(b"+") {
            Some(name) => (name, true),
            None => (&item[..at], false),
        };
        let known = [METADATA_DISABLED].iter().chain(&REGIONS).chain(&no_proxy::NAMES);
        let Some(name) = known.into_iter().find(|known| known.as_bytes() == name) else { continue };
        let (Some(value), text) = (env.get(name), &item[at + 1..]) else { continue };
        let undone = match (appended, value.strip_suffix(text)) {
            (true, Some(rest)) if !text.is_empty() => env.set(name, rest),
            (false, Some(b"")) => env.unset(name),
            _ => Ok(()),
        };
        result = result.and(undone);
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        #[test]
        fn a_forged_list_touches_nothing_else(list in "[A-Z_]{0,12}[+=]{0,3}[a-z ]{0,20}|PATH=/bin|TOKEN\\+=x") {
            let own: BTreeMap<String, Vec<u8>> =
                [("PATH", "/bin"), ("TOKEN", "x")].map(|(n, v)| (n.to_owned(), v.as_bytes().to_vec())).into();
            let mut env = own.clone();
            env.insert(ADDED.into(), list.into_bytes());
            undo(&mut env).unwrap();
            prop_assert_eq!(env, own);
        }
    }
}
