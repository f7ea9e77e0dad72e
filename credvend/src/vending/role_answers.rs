//! The last answer about each role: `credvend status` and the metrics show the roles that AWS, or the upstream, refuses.
//!
//! A user cannot add a role here: only those of the project map are asked for.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use credd_protocol::{ProjectId, RoleName};
use time::{Duration, OffsetDateTime};

use super::fresh;

/// An answer that is older is not shown any more.
const SHOWN_FOR: Duration = Duration::hours(1);

/// The most roles that are remembered; more are not shown.
const MAX_ROLES: usize = 4096;

/// How many refused roles a warning names.
const NAMED: usize = 5;

/// The last answer about each role that was asked for lately.
#[derive(Default)]
pub(super) struct RoleAnswers(Mutex<BTreeMap<(ProjectId, RoleName), RoleAnswer>>);

struct RoleAnswer {
    at: OffsetDateTime,
    /// Why the role was refused; `None` if credentials were issued.
    refused: Option<String>,
}

impl RoleAnswers {
    fn answers(&self) -> MutexGuard<'_, BTreeMap<(ProjectId, RoleName), RoleAnswer>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Credentials of the role were issued.
    pub(super) fn issued(&self, project: &ProjectId, role: &RoleName, at: OffsetDateTime) {
        self.remember(project, role, RoleAnswer { at, refused: None });
    }

    /// The role was refused.
    pub(super) fn refused(&self, project: &ProjectId, role: &RoleName, at: OffsetDateTime, why: &str) {
        self.remember(project, role, RoleAnswer { at, refused: Some(why.to_owned()) });
    }

    fn remember(&self, project: &ProjectId, role: &RoleName, answer: RoleAnswer) {
        let mut answers = self.answers();
        if answers.len() >= MAX_ROLES {
            answers.retain(|_, of| fresh(of.at, answer.at, SHOWN_FOR));
        }
        let key = (project.clone(), role.clone());
        if answers.len() < MAX_ROLES || answers.contains_key(&key) {
            answers.insert(key, answer);
        }
    }

    /// How many roles were refused the last time that they were asked for, and how many were given.
    pub(super) fn counts(&self, now: OffsetDateTime) -> (usize, usize) {
        let mut answers = self.answers();
        answers.retain(|_, of| fresh(of.at, now, SHOWN_FOR));
        let refused = answers.values().filter(|of| of.refused.is_some()).count();
        (refused, answers.len() - refused)
    }

    /// What an administrator should know: the roles that are refused, and whether any is given.
    pub(super) fn warning(&self, now: OffsetDateTime) -> Option<String> {
        let (refused, given) = self.counts(now);
        let answers = self.answers();
        let mut list: Vec<String> = answers
            .iter()
            .filter_map(|((project, role), of)| Some(format!("{role} of project {project} ({})", of.refused.as_ref()?)))
            .take(NAMED)
            .collect();
        if list.is_empty() {
            return None;
        }
        if refused > NAMED {
            list.push("…".to_owned());
        }
        let list = list.join("; ");
        Some(match given {
            0 => format!("credvend was refused every role that jobs asked for in the last hour: {list}"),
            _ => format!(
                "credvend was refused {refused} of {} roles that jobs asked for in the last hour: {list}",
                refused + given
            ),
        })
    }
}
