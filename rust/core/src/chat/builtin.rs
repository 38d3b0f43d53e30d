//! Chat templates for models whose files carry none, or a broken one.

use crate::error::{ErrorCode, Fault};

/// Name and source of each.
const TEMPLATES: [(&str, &str); 1] = [(
    "chatml",
    "{%- for message in messages -%}\
     {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' -}}\
     {%- endfor -%}\
     {%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}",
)];

/// The source that is meant: a template itself, or the name of one that is built in.
///
/// # Errors
///
/// `InvalidRequest` for a text that is neither.
pub fn source_of(given: &str) -> Result<&str, Fault> {
    if given.contains('{') {
        return Ok(given);
    }
    if let Some((_, source)) = TEMPLATES.iter().find(|it| it.0 == given.trim()) {
        return Ok(source);
    }
    let names = TEMPLATES.map(|it| it.0).join(", ");
    let message = format!("that is no chat template, and none that is built in ({names}) has such a name");
    Err(Fault::new(ErrorCode::InvalidRequest, message).param("chat_template"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        engine::Vocabulary,
        text::{conversation::Chat, template::ChatTemplate},
    };

    #[test]
    fn a_name_is_a_template() {
        let template = ChatTemplate::compile(source_of("chatml").unwrap(), &Vocabulary::default()).unwrap();
        let messages = r#"[{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]"#;
        let chat = Chat { messages: messages.into(), tools: None, variables: None };
        let wanted = "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nu<|im_end|>\n";
        assert_eq!(template.render_plain(&chat, false, 0).unwrap(), wanted);
        assert_eq!(
            template.render_plain(&chat, true, 0).unwrap(),
            format!("{wanted}<|im_start|>assistant\n")
        );
        assert_eq!(source_of("{{ x }}").unwrap(), "{{ x }}");
        let fault = source_of("chatlm").unwrap_err();
        assert!(fault.message.contains("chatml"), "{fault}");
    }
}
