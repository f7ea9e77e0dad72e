//! The container-credentials document that SDKs read, and the error body that several of them print to their user.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::ids::RoleArn;
use crate::secret::Secret;

/// Temporary credentials of a role. Serialized, it is the document of the container-credentials contract.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Credentials {
    /// `ASIA…`; not a secret, it stands in every CloudTrail record.
    pub access_key_id: String,
    /// The signing key.
    #[serde(serialize_with = "Secret::serialize_exposed")]
    pub secret_access_key: Secret,
    /// The session token.
    #[serde(serialize_with = "Secret::serialize_exposed")]
    pub token: Secret,
    /// When AWS stops accepting them.
    #[serde(with = "rfc3339_z")]
    pub expiration: OffsetDateTime,
    /// Whose credentials they are.
    pub role_arn: RoleArn,
    /// The role's AWS account; newer SDKs use it for endpoints.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account_id: Option<String>,
}

/// An error as SDKs read it: both spellings, since each SDK knows only one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// A word for programs.
    pub code: String,
    /// A sentence for people: what happened, to which job, and what to do.
    pub message: String,
    /// The same word.
    #[serde(rename = "Code")]
    pub code_upper: String,
    /// The same sentence.
    #[serde(rename = "Message")]
    pub message_upper: String,
}

impl ErrorBody {
    /// The body for one error.
    pub fn new(code: &str, message: &str) -> Self {
        ErrorBody {
            code: code.to_owned(),
            message: message.to_owned(),
            code_upper: code.to_owned(),
            message_upper: message.to_owned(),
        }
    }

    /// Its JSON bytes.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("four strings")
    }
}

/// Times as `2026-01-31T12:00:00Z`, whole seconds: what every SDK's parser takes.
pub mod rfc3339_z {
    use serde::{Deserialize, Deserializer, Serializer};
    use time::format_description::well_known::Rfc3339;
    use time::{OffsetDateTime, UtcOffset};

    /// The text of a time.
    pub fn format(at: OffsetDateTime) -> String {
        let at = at.to_offset(UtcOffset::UTC).replace_nanosecond(0).unwrap_or(at);
        at.format(&Rfc3339).unwrap_or_default()
    }

    /// For `#[serde(with = …)]`.
    pub fn serialize<S: Serializer>(at: &OffsetDateTime, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&format(*at))
    }

    /// For `#[serde(with = …)]`.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<OffsetDateTime, D::Error> {
        let text = String::deserialize(deserializer)?;
        OffsetDateTime::parse(&text, &Rfc3339).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documents_fields_are_the_contracts() {
        let document = Credentials {
            access_key_id: "ASIAEXAMPLE".into(),
            secret_access_key: Secret::new("canary-secret".into()),
            token: Secret::new("canary-token".into()),
            expiration: time::macros::datetime!(2026-01-31 12:00:00.5 +2),
            role_arn: "arn:aws:iam::123456789012:role/r".parse().unwrap(),
            account_id: None,
        };
        assert_eq!(
            serde_json::to_string(&document).unwrap(),
            r#"{"AccessKeyId":"ASIAEXAMPLE","SecretAccessKey":"canary-secret","Token":"canary-token","Expiration":"2026-01-31T10:00:00Z","RoleArn":"arn:aws:iam::123456789012:role/r"}"#
        );
        assert!(!format!("{document:?}").contains("canary"));
    }
}
