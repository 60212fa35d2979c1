//! The bytes that are signed. Whatever two readers could take for different things is refused here: a name that stands twice, a number
//! that a double cannot hold.
use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{self, MapAccess, SeqAccess},
};
use serde_json::{Map, Value, json};

use super::MOST_NUMBER;

pub fn read(value: &[u8]) -> Result<Map<String, Value>, String> {
    match serde_json::from_slice(value).map_err(|error| format!("no JSON that can be signed ({error})"))? {
        Strict(Value::Object(object)) => Ok(object),
        Strict(_) => Err("JSON that is no object".into()),
    }
}
pub fn message(fleet: &str, path: &str, value: Map<String, Value>, serial: u64, not_after: &str) -> Vec<u8> {
    let message = json!({"fleet": fleet, "key": path, "value": value, "serial": serial, "not_after": not_after});
    serde_json_canonicalizer::to_vec(&message).expect("text keys and finite numbers have a canonical form")
}

struct Strict(Value);
impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Strict;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("JSON")
            }
            fn visit_unit<E>(self) -> Result<Strict, E> {
                Ok(Strict(Value::Null))
            }
            fn visit_bool<E>(self, flag: bool) -> Result<Strict, E> {
                Ok(Strict(flag.into()))
            }
            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Strict, E> {
                match number <= MOST_NUMBER {
                    true => Ok(Strict(number.into())),
                    false => Err(E::custom(format_args!("the number {number} is above 2^53"))),
                }
            }
            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Strict, E> {
                match number.unsigned_abs() <= MOST_NUMBER {
                    true => Ok(Strict(number.into())),
                    false => Err(E::custom(format_args!("the number {number} is below -2^53"))),
                }
            }
            fn visit_f64<E>(self, number: f64) -> Result<Strict, E> {
                Ok(Strict(number.into()))
            }
            fn visit_str<E>(self, text: &str) -> Result<Strict, E> {
                Ok(Strict(text.into()))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Strict, A::Error> {
                let mut list = vec![];
                while let Some(Strict(value)) = seq.next_element()? {
                    list.push(value);
                }
                Ok(Strict(list.into()))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Strict, A::Error> {
                let mut object = Map::new();
                while let Some((name, Strict(value))) = map.next_entry::<String, Strict>()? {
                    if object.contains_key(&name) {
                        return Err(de::Error::custom(format_args!("a name stands there twice: {name:?}")));
                    }
                    object.insert(name, value);
                }
                Ok(Strict(object.into()))
            }
        }
        from.deserialize_any(Visitor)
    }
}
