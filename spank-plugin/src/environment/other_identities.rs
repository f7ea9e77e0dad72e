//! Identities that a job's environment brings along. Every SDK looks for them before it asks the container provider, so
//! they win over the project's role, and nothing in AWS' answers says so.

use slurm_spank::Environment;

use super::is_set;

/// What makes an SDK take another identity, and how that is said. `~/.aws` is not among them: it is the user's home, which
/// root does not read.
const WINNERS: [(&str, &str); 8] = [
    ("AWS_ACCESS_KEY_ID", KEYS),
    // The older name; Go and Java still read it.
    ("AWS_ACCESS_KEY", KEYS),
    ("AWS_WEB_IDENTITY_TOKEN_FILE", "with AWS_ROLE_ARN it wins over the project's role"),
    ("AWS_PROFILE", PROFILE),
    ("AWS_DEFAULT_PROFILE", PROFILE),
    ("AWS_SHARED_CREDENTIALS_FILE", FILE),
    ("AWS_CONFIG_FILE", FILE),
    // botocore's oldest.
    ("AWS_CREDENTIAL_FILE", FILE),
];

const KEYS: &str = "these keys win over the project's role";
const PROFILE: &str = "a role, keys or a login of this profile win over the project's role";
const FILE: &str = "keys, a role or a login in this file win over the project's role";

/// One sentence for each of them that is set, with the variable's name and never its value.
pub fn notices(env: &dyn Environment) -> Vec<String> {
    let set = WINNERS.iter().filter(|(name, _)| is_set(env, name));
    set.map(|(name, what)| format!("credd: {name} is set in the job's environment: {what}; unset it to use the role"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn each_is_named_and_its_value_is_not() {
        let mut env: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        assert_eq!(notices(&env), Vec::<String>::new());
        for (name, _) in WINNERS {
            env.insert(name.to_owned(), Vec::new());
        }
        assert_eq!(notices(&env), Vec::<String>::new());
        for (name, _) in WINNERS {
            env.insert(name.to_owned(), b"AKIA-SECRET".to_vec());
        }
        let said = notices(&env);
        assert_eq!(said.len(), WINNERS.len());
        for ((name, _), notice) in WINNERS.iter().zip(&said) {
            assert!(notice.contains(&format!(" {name} is set")), "{notice}");
            assert!(!notice.contains("SECRET") && !notice.contains('\n') && notice.len() < 200, "{notice}");
        }
    }
}
