// Shows openapi.json with Swagger UI. The content security policy of the server allows no inline script.
SwaggerUIBundle({ url: "openapi.json", dom_id: "#routes", validatorUrl: null, deepLinking: true });
