//! The environment variables that `credd env` prints, as commands of a POSIX shell or as JSON.

use std::collections::BTreeMap;

use credd_protocol::Region;
use credd_protocol::credentials::rfc3339_z;
use credd_protocol::no_proxy;
use credd_protocol::own_api::{OwnCredentials, OwnToken};
use zeroize::Zeroizing;

use super::{FULL_URI, Getenv, TOKEN};

const KEYS: [&str; 4] =
    ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_CREDENTIAL_EXPIRATION"];
const REGIONS: [&str; 2] = ["AWS_REGION", "AWS_DEFAULT_REGION"];
/// SDKs prefer these to the variables that `--endpoint` sets.
const OTHER_SOURCES: [&str; 2] = ["AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"];

/// Variables by name, with the value to set, or without one if the variable is to be unset.
pub struct Variables(BTreeMap<&'static str, Option<Zeroizing<Vec<u8>>>>);

impl Variables {
    /// The keys.
    pub fn with_keys(own: &OwnCredentials, getenv: Getenv<'_>) -> Self {
        let keys = &own.credentials;
        let values = [
            keys.access_key_id.clone(),
            keys.secret_access_key.expose().to_owned(),
            keys.token.expose().to_owned(),
            rfc3339_z::format(keys.expiration),
        ];
        let mut variables = Variables(BTreeMap::new());
        for (name, value) in KEYS.into_iter().zip(values) {
            variables.set(name, value);
        }
        variables.set_region(own.region.as_ref(), getenv);
        variables
    }

    /// The endpoint's URL and a token, with which SDKs get credentials and renew them.
    pub fn with_endpoint(own: &OwnToken, getenv: Getenv<'_>) -> Self {
        let mut variables = Variables(BTreeMap::new());
        for name in KEYS.into_iter().chain(OTHER_SOURCES) {
            variables.0.insert(name, None);
        }
        variables.set(FULL_URI, own.uri.clone());
        variables.set(TOKEN, own.token.expose().to_owned());
        variables.set_region(own.region.as_ref(), getenv);
        variables.bypass_proxies(getenv);
        variables
    }

    fn set(&mut self, name: &'static str, value: impl Into<Vec<u8>>) {
        self.0.insert(name, Some(Zeroizing::new(value.into())));
    }

    /// Sets both names, since botocore ignores the first; neither if one of them is set.
    fn set_region(&mut self, region: Option<&Region>, getenv: Getenv<'_>) {
        if let Some(region) = region
            && !REGIONS.iter().any(|name| getenv(name).is_some_and(|value| !value.is_empty()))
        {
            for name in REGIONS {
                self.set(name, region.to_string());
            }
        }
    }

    /// Prints both variables also where they need no change, so that the printed environment is complete.
    fn bypass_proxies(&mut self, getenv: Getenv<'_>) {
        let old = no_proxy::NAMES.map(getenv);
        let changes = no_proxy::bypass([old[0].as_deref(), old[1].as_deref()]);
        for ((name, change), old) in no_proxy::NAMES.into_iter().zip(changes).zip(&old) {
            self.set(name, change.value().or_else(|| old.clone()).unwrap_or_default());
        }
    }

    /// Commands for the `eval` of a POSIX shell, with or without quotes around the command substitution.
    pub fn shell(&self) -> Zeroizing<Vec<u8>> {
        let mut text = Zeroizing::new(Vec::new());
        for (name, value) in &self.0 {
            match value {
                Some(value) => {
                    text.extend_from_slice(format!("export {name}=").as_bytes());
                    quote(value, &mut text);
                    text.extend_from_slice(b";\n");
                }
                None => text.extend_from_slice(format!("unset {name};\n").as_bytes()),
            }
        }
        text
    }

    /// A JSON object by name, with `null` for a variable to unset. JSON is text: a byte that is not becomes U+FFFD.
    pub fn json(&self) -> Zeroizing<Vec<u8>> {
        let plain: BTreeMap<_, _> = self
            .0
            .iter()
            .map(|(name, value)| (name, value.as_ref().map(|value| String::from_utf8_lossy(value))))
            .collect();
        let mut text = serde_json::to_vec_pretty(&plain).expect("plain values");
        text.push(b'\n');
        Zeroizing::new(text)
    }
}

/// Appends a value as one word of a POSIX shell's input.
///
/// Where the user left out the quotes in `eval "$(credd env)"`, the shell first splits the text into words and then expands
/// file name patterns in it, single quotes or not: a file with the right name in the current directory could then replace a
/// command. So the text holds no character of a pattern (those of extended patterns, `+(…)`, included) and no white
/// space that splitting would change: `printf`, which every shell has, makes them from their octal numbers.
fn quote(value: &[u8], text: &mut Vec<u8>) {
    text.push(b'\'');
    for byte in value {
        match byte {
            b'*' | b'?' | b'[' | b'(' | b'\\' | b' ' | b'\t' => {
                text.extend_from_slice(format!("'\"$(printf '\\{byte:03o}')\"'").as_bytes());
            }
            b'\'' => text.extend_from_slice(b"'\"'\"'"),
            _ => text.push(*byte),
        }
    }
    text.push(b'\'');
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt as _;
    use std::path::Path;
    use std::process::Command;

    use super::super::tests::{nothing, own};
    use super::*;

    const SHELLS: [&str; 3] = ["sh", "dash", "bash"];
    const EVALS: [&str; 2] = ["eval \"$1\"", "eval $1"];

    fn is_set(shell: &str) -> bool {
        Command::new(shell).args(["-c", ":"]).output().is_ok()
    }

    /// What a shell prints that has evaluated the commands in this directory.
    fn after(shell: &str, before: &str, eval: &str, commands: &[u8], shown: &str, dir: &Path) -> Vec<u8> {
        let script = format!("{before}{eval}; set -f; printf '%s|' {shown}");
        let commands = std::ffi::OsString::from_vec(commands.to_vec());
        let mut command = Command::new(shell);
        command.args(["-c", &script, "sh"]).arg(commands).current_dir(dir);
        for name in KEYS.into_iter().chain(REGIONS).chain(no_proxy::NAMES) {
            command.env_remove(name);
        }
        let done = command.output().unwrap();
        assert!(done.status.success(), "{shell} {script}: {}", String::from_utf8_lossy(&done.stderr));
        done.stdout
    }

    #[test]
    fn a_shell_gets_exactly_the_values_whatever_is_in_them() {
        let dir = tempfile::tempdir().unwrap();
        let commands = Variables::with_keys(&own(), &nothing).shell();
        let shown = "\"$AWS_SECRET_ACCESS_KEY\" \"$AWS_SESSION_TOKEN\" \"$AWS_REGION\"";
        for shell in SHELLS.into_iter().filter(|shell| is_set(shell)) {
            for eval in EVALS {
                let printed = after(shell, "", eval, &commands, shown, dir.path());
                assert_eq!(String::from_utf8_lossy(&printed), "it's/a+secret|$(token)`x`|eu-west-1|", "{shell} {eval}");
            }
        }
        let own_region = |name: &str| (name == "AWS_DEFAULT_REGION").then(|| b"us-east-1".to_vec());
        let text = Variables::with_keys(&own(), &own_region).shell();
        assert!(!String::from_utf8_lossy(&text).contains("REGION"));
    }

    /// A directory of an attacker's, with a file whose name a pattern in the text would match and that is a command itself.
    #[test]
    fn no_file_name_replaces_a_value_also_where_the_quotes_were_left_out() {
        let list = b"*,?.site,[ab],+(x),\\*, a  b,\xff,it's";
        let dir = tempfile::tempdir().unwrap();
        let file = "NO_PROXY='x,y.site,a,x,touch,127.0.0.1';";
        for name in [file, "export", "x,y.site,a", "NO_PROXY='", "*,127.0.0.1", "a", "b"] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        let star = |name: &str| (name == "NO_PROXY").then(|| b"*".to_vec());
        let many = |name: &str| no_proxy::NAMES.contains(&name).then(|| list.to_vec());
        for (getenv, upper, lower) in [
            (&star as Getenv<'_>, b"*,127.0.0.1".to_vec(), b"*".to_vec()),
            (&many, [&list[..], b",127.0.0.1"].concat(), [&list[..], b",127.0.0.1"].concat()),
        ] {
            let mut variables = Variables(BTreeMap::new());
            variables.bypass_proxies(getenv);
            let expected = [upper, b"|".to_vec(), lower, b"|".to_vec()].concat();
            for shell in SHELLS.into_iter().filter(|shell| is_set(shell)) {
                for eval in EVALS {
                    let plain = after(shell, "", eval, &variables.shell(), "\"$NO_PROXY\" \"$no_proxy\"", dir.path());
                    assert_eq!(plain, expected, "{shell} {eval}: {}", String::from_utf8_lossy(&plain));
                }
            }
            if is_set("bash") {
                let strict = "shopt -s nullglob extglob globstar dotglob failglob; ";
                let strict =
                    after("bash", strict, EVALS[1], &variables.shell(), "\"$NO_PROXY\" \"$no_proxy\"", dir.path());
                assert_eq!(strict, expected, "{}", String::from_utf8_lossy(&strict));
            }
        }
    }

    #[test]
    fn the_endpoints_variables_win_over_keys_and_bypass_proxies() {
        let token = credd_protocol::JobToken::mint().unwrap();
        let own = OwnToken { job: 7.try_into().unwrap(), region: None, uri: "http://127.0.0.1:9999/x".into(), token };
        let json = |getenv: Getenv<'_>| -> serde_json::Value {
            serde_json::from_slice(&Variables::with_endpoint(&own, getenv).json()).unwrap()
        };
        let lists = |json: &serde_json::Value| no_proxy::NAMES.map(|name| json[name].as_str().unwrap().to_owned());
        let one_spelling = |name: &str| (name == "no_proxy").then(|| b"a,*".to_vec());
        let printed = json(&one_spelling);
        for unset in KEYS.into_iter().chain(OTHER_SOURCES) {
            assert!(printed[unset].is_null() && printed.get(unset).is_some(), "{unset}");
        }
        assert_eq!(
            (printed[FULL_URI].as_str(), printed[TOKEN].as_str()),
            (Some("http://127.0.0.1:9999/x"), Some(own.token.expose()))
        );
        assert_eq!(lists(&printed), ["a,*,127.0.0.1", "a,*,127.0.0.1"]);
        assert_eq!(lists(&json(&nothing)), ["127.0.0.1", "127.0.0.1"]);
        let star = |name: &str| (name == "no_proxy").then(|| b"*".to_vec());
        assert_eq!(lists(&json(&star)), ["*,127.0.0.1", "*"]);
        let in_order = |_: &str| Some(b"a,127.0.0.1".to_vec());
        assert_eq!(lists(&json(&in_order)), ["a,127.0.0.1", "a,127.0.0.1"]);
        let text = Variables::with_endpoint(&own, &one_spelling).shell();
        assert!(String::from_utf8_lossy(&text).contains("unset AWS_ACCESS_KEY_ID;\n"));
    }
}
