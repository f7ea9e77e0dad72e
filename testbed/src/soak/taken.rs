//! Credentials that jobs copied away: what AWS itself says of them after all the revocations.

use std::fs;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::clock::Ms;
use super::history::{Revoked, Whom};
use super::invariants::Violation;
use super::{Soak, locked};
use crate::people;

/// The file in the user's home, one JSON line for each.
pub const FILE: &str = "soak-taken.jsonl";

/// At most so many of each kind are tried: the AWS command line takes a second.
const TRIED: usize = 4;

/// A document as a job found it, with when and by whom.
#[derive(Clone, Serialize, Deserialize)]
pub struct Taken {
    /// When it was asked for.
    pub sent: Ms,
    /// By whom.
    pub user: String,
    /// In which project.
    pub account: String,
    /// On which node, if its job has no other.
    pub alone_on: Option<String>,
    /// The access key's id.
    pub key: String,
    /// The secret.
    pub secret: String,
    /// The session token.
    pub token: String,
}

/// Whether it must be dead: taken before a revocation of its user that was done; `None` where nothing is sure, such as of
/// what was taken while one was under way.
fn must_be_dead(taken: &Taken, revocations: &[Revoked]) -> Option<bool> {
    let mut touched = false;
    for revoked in revocations {
        let about = match &revoked.whom {
            Whom::User(user) => *user == taken.user,
            Whom::Project(project) => *project == taken.account,
            // Not known of what was copied away, and perhaps.
            Whom::Job(_) => false,
            Whom::Node(node) => taken.alone_on.as_ref() == Some(node),
        };
        if about && revoked.denied && revoked.done.is_some() && taken.sent < revoked.asked {
            return Some(true);
        }
        // AWS denies by role-session name, which all jobs of a user on a node share: who is touched gets others at once.
        // A project's order denies in the roles of that project alone.
        let project = matches!(revoked.whom, Whom::Project(_));
        touched |= about || !project && revoked.users.contains(&taken.user);
    }
    (!touched).then_some(false)
}

/// Tries to read the project's data with the newest and oldest of them: what was revoked must not, the bystander's must.
pub fn judge(soak: &Soak<'_>) -> Result<(usize, Vec<Violation>)> {
    let revocations = locked(&soak.history).revocations.clone();
    let (mut dead, mut alive) = (Vec::new(), Vec::new());
    for user in people::USERS {
        let path = soak.cluster.run_dir().join("home").join(user.name).join(FILE);
        for line in fs::read_to_string(path).unwrap_or_default().lines() {
            let taken: Taken = serde_json::from_str(line)?;
            match must_be_dead(&taken, &revocations) {
                Some(true) => dead.push(taken),
                Some(false) => alive.push(taken),
                None => {}
            }
        }
    }
    alive.sort_by(|one, other| (&one.user, &one.account).cmp(&(&other.user, &other.account)));
    let (mut tried, mut found) = (0, Vec::new());
    // Of each user and role apart: who shares a role with one who was revoked must be among them.
    let alive = alive.chunk_by(|one, other| (&one.user, &one.account) == (&other.user, &other.account));
    let alive = alive.flat_map(ends).map(|taken| (taken, true));
    for (taken, must_read) in ends(&dead).map(|taken| (taken, false)).chain(alive) {
        tried += 1;
        let bucket = format!("s3://{}-data/hello.txt", taken.account);
        let env = [
            ("AWS_ACCESS_KEY_ID", taken.key.as_str()),
            ("AWS_SECRET_ACCESS_KEY", &taken.secret),
            ("AWS_SESSION_TOKEN", &taken.token),
        ];
        let done = soak.cluster.as_user(&taken.user).run_with(&env, &["aws", "s3", "cp", &bucket, "-"]);
        let says = done.stderr.trim();
        let what = match (done.ok(), must_read) {
            (true, false) => format!("{} of {} was revoked, and AWS takes it", taken.key, taken.user),
            (false, true) => format!("{} of {} was not revoked, and AWS refuses it: {says}", taken.key, taken.user),
            (false, false) if !says.contains("AccessDenied") && !says.contains("Forbidden") => {
                format!("{} of {}: AWS should deny it and says {says}", taken.key, taken.user)
            }
            _ => continue,
        };
        found.push(Violation {
            invariant: "what was issued dies, and nobody else's",
            subject: taken.key.clone(),
            what,
        });
    }
    Ok((tried, found))
}

/// The first and the last few.
fn ends(all: &[Taken]) -> impl Iterator<Item = &Taken> {
    let few = TRIED / 2;
    let tail = all.len().saturating_sub(few).max(few.min(all.len()));
    all[..few.min(all.len())].iter().chain(&all[tail..])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(user: &str, sent: Ms) -> Taken {
        let text = String::new;
        let alone_on = Some("n3".to_owned());
        Taken {
            sent,
            user: user.into(),
            account: text(),
            alone_on,
            key: sent.to_string(),
            secret: text(),
            token: text(),
        }
    }

    #[test]
    fn only_what_was_taken_before_a_revocation_that_is_done_must_be_dead() {
        let whom = Whom::User("bob".into());
        let users = ["bob".to_owned()].into();
        let revoked = Revoked { whom, users, asked: 100, done: Some(110), denied: true, unheard: None };
        let of = |user, sent, revoked: &Revoked| must_be_dead(&taken(user, sent), std::slice::from_ref(revoked));
        assert_eq!(of("bob", 99, &revoked), Some(true));
        assert_eq!(of("bob", 105, &revoked), None);
        assert_eq!(of("bobby", 99, &revoked), Some(false));
        assert_eq!(of("bob", 99, &Revoked { denied: false, ..revoked.clone() }), None);
        assert_eq!(of("bob", 99, &Revoked { done: None, ..revoked.clone() }), None);
        let node = |node: &str| {
            let users = ["bob", "bobby"].map(str::to_owned).into();
            Revoked { whom: Whom::Node(node.into()), users, ..revoked.clone() }
        };
        assert_eq!((of("bobby", 99, &node("n1")), of("bobby", 99, &node("n3"))), (None, Some(true)));
        let job = Revoked { whom: Whom::Job(7), ..revoked };
        assert_eq!(of("bob", 99, &job), None, "it may have been that job's");
    }

    #[test]
    fn the_ends_are_each_taken_once() {
        let count = |n: u64| ends(&(0..n).map(|at| taken("a", at)).collect::<Vec<_>>()).count();
        assert_eq!([0, 1, 2, 3, 4, 9].map(count), [0, 1, 2, 3, 4, 4]);
    }
}
