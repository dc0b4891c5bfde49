//! Tokens as they come: three parts of base64url, two of which are JSON (RFC 7515). Nothing here is verified, and nothing that
//! is read here may be believed.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// A token that was taken apart.
#[derive(Debug)]
pub struct Token<'a> {
    /// The header.
    pub header: Map<String, Value>,
    /// The claims.
    pub claims: Map<String, Value>,
    /// What is signed: the first two parts.
    pub signed: &'a str,
    /// The signature, in base64url.
    pub signature: &'a str,
}

impl<'a> Token<'a> {
    /// Takes it apart. The error says what about its form is wrong, and nothing of what it holds.
    pub fn parse(text: &'a str) -> Result<Self, &'static str> {
        let (signed, signature) = text.rsplit_once('.').ok_or("it does not have three parts")?;
        let (header, claims) = signed.split_once('.').ok_or("it does not have three parts")?;
        if claims.contains('.') {
            return Err("it does not have three parts");
        }
        if signature.is_empty() {
            return Err("it is not signed");
        }
        Ok(Self {
            header: object(header).map_err(|()| "its header is not a JSON object in base64url, with each name once")?,
            claims: object(claims)
                .map_err(|()| "its claims are not a JSON object in base64url, with each name once")?,
            signed,
            signature,
        })
    }

    /// A claim, or a member of the header, that is text.
    pub fn text<'m>(members: &'m Map<String, Value>, name: &str) -> Option<&'m str> {
        members.get(name).and_then(Value::as_str)
    }
}

fn object(part: &str) -> Result<Map<String, Value>, ()> {
    let json = URL_SAFE_NO_PAD.decode(part).map_err(drop)?;
    match strict(&json) {
        Ok(Value::Object(members)) => Ok(members),
        _ => Err(()),
    }
}

/// JSON in which no object has a name twice: of two values the signer may have meant one, and a reader take the other.
pub fn strict(json: &[u8]) -> Result<Value, serde_json::Error> {
    serde_json::from_slice::<Strict>(json).map(|strict| strict.0)
}

struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Values).map(Strict)
    }
}

struct Values;

impl<'de> Visitor<'de> for Values {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, truth: bool) -> Result<Value, E> {
        Ok(Value::Bool(truth))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Value, E> {
        Ok(number.into())
    }

    fn visit_i64<E>(self, number: i64) -> Result<Value, E> {
        Ok(number.into())
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<Value, E> {
        let number = Number::from_f64(number).ok_or_else(|| E::custom("a number is not finite"))?;
        Ok(Value::Number(number))
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(Value::String(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(Strict(item)) = items.next_element()? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some((name, Strict(value))) = members.next_entry::<String, _>()? {
            if map.insert(name, value).is_some() {
                return Err(A::Error::custom("a name is there twice"));
            }
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(json: &str) -> String {
        URL_SAFE_NO_PAD.encode(json)
    }

    #[test]
    fn three_parts_and_no_more() {
        let (header, claims) = (
            encoded(r#"{"alg":"HS256"}"#),
            encoded(r#"{"sub":"a","n":[1,-2,0.5,null,true]}"#),
        );
        let text = format!("{header}.{claims}.c2ln");
        let token = Token::parse(&text).unwrap();
        assert_eq!(Token::text(&token.header, "alg"), Some("HS256"));
        assert_eq!(Token::text(&token.claims, "sub"), Some("a"));
        assert_eq!(
            (token.signed, token.signature),
            (&*format!("{header}.{claims}"), "c2ln")
        );
        for wrong in [
            String::new(),
            "..".to_owned(),
            header.clone(),
            format!("{header}.{claims}"),
            format!("{header}.{claims}."),
            format!("{header}.{claims}.a.b"),
            format!("{header}.{claims}=.a"),
            format!("{claims}\n.{claims}.a"),
            format!("{}.{claims}.a", encoded("[]")),
            format!("{header}.{}.a", encoded("{} {}")),
        ] {
            assert!(Token::parse(&wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_name_twice_is_refused_at_any_depth() {
        assert!(strict(br#"{"a":{"b":1},"b":{"b":1}}"#).is_ok());
        for twice in [r#"{"a":1,"a":2}"#, r#"{"a":[{"b":1,"b":1}]}"#, r#"{"a":1,"\u0061":2}"#] {
            assert!(strict(twice.as_bytes()).is_err(), "{twice}");
        }
    }

    #[test]
    fn nesting_has_an_end() {
        assert!(strict("[".repeat(100_000).as_bytes()).is_err());
    }
}
