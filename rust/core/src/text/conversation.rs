//! What a chat template is given.

use serde::{Deserialize, Serialize};

/// A conversation for the chat template.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Chat {
    /// JSON text of an array of message objects, as the template sees them.
    pub messages: String,
    /// JSON text of an array of tool definitions, as the template sees them.
    #[serde(default)]
    pub tools: Option<String>,
    /// JSON text of an object with further variables for the template.
    #[serde(default)]
    pub variables: Option<String>,
}
