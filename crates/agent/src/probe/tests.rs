use super::*;

#[test]
fn locations_are_resolved_against_the_page() {
    assert_eq!(resolve("http://1.2.3.4:80/a/b", "/c").as_deref(), Some("http://1.2.3.4:80/c"));
    assert_eq!(resolve("http://1.2.3.4:80/a/b", "c").as_deref(), Some("http://1.2.3.4:80/a/c"));
    assert_eq!(resolve("http://1.2.3.4:80/", "https://x/y").as_deref(), Some("https://x/y"));
    assert!(same_host("http://1.2.3.4:80/", "http://1.2.3.4:81/x") && !same_host("http://1.2.3.4/", "http://x/"));
}

#[test]
fn ports_are_numbers_or_names_of_the_container() {
    let spec: ContainerSpec =
        serde_json::from_value(serde_json::json!({"name": "c", "ports": [{"name": "http", "containerPort": 8080}]}))
            .expect("container");
    assert_eq!(port(&IntOrString::String("http".into()), &spec), Ok(8080));
    assert_eq!(port(&IntOrString::Int(81), &spec), Ok(81));
    let missing = port(&IntOrString::String("nope".into()), &spec).expect_err("no such port");
    assert_eq!(missing.text(), "couldn't find port: \"nope\" in container \"c\"");
    assert!(port(&IntOrString::Int(70000), &spec).is_err());
}
